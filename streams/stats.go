package streams

import (
	"sync/atomic"

	"github.com/segmentio/kafka-go/protocol"
)

// Stats are a client's counts since Dial.
type Stats struct {
	Connects  int64 // connections opened, the first ones too
	Refreshes int64 // times the cluster's layout was asked for anew, after an error
	Failures  int64 // requests that got no answer: connection lost, timeout
	Retries   int64 // requests sent again, after no answer or a passing error
	NewIDs    int64 // producer ids taken anew after a broker forgot the old one: the batch may be there twice
	BytesOut  int64 // record batches sent, headers and values, retries included
	BytesIn   int64 // record batches received
	RawOut    int64 // rows before compression
	RawIn     int64 // rows after decompression
	Batches   int64 // batches published
	Messages  int64 // messages handed to readers' callers
	Bad       int64 // messages that could not be decoded
	Aborted   int64 // messages skipped because their transaction was aborted

	// Requests by kind.
	Produce, Fetch, Metadata, InitProducerID, Offsets, Commits, Heartbeats, Joins int64
}

type counters struct {
	connects, refreshes, failures, retries, newIDs             atomic.Int64
	bytesOut, bytesIn, rawOut, rawIn                           atomic.Int64
	batches, messages, bad, aborted                            atomic.Int64
	produce, fetch, metadata, initID, offsets, commits, hb, jn atomic.Int64
}

func (c *counters) request(api protocol.ApiKey) {
	switch api {
	case protocol.Produce:
		c.produce.Add(1)
	case protocol.Fetch:
		c.fetch.Add(1)
	case protocol.Metadata:
		c.metadata.Add(1)
	case protocol.InitProducerId:
		c.initID.Add(1)
	case protocol.ListOffsets, protocol.OffsetFetch:
		c.offsets.Add(1)
	case protocol.OffsetCommit:
		c.commits.Add(1)
	case protocol.Heartbeat:
		c.hb.Add(1)
	case protocol.JoinGroup, protocol.SyncGroup, protocol.LeaveGroup:
		c.jn.Add(1)
	}
}

// Stats gives the counts so far.
func (c *Client) Stats() Stats {
	n := &c.count
	return Stats{
		Connects: n.connects.Load(), Refreshes: n.refreshes.Load(), Failures: n.failures.Load(), Retries: n.retries.Load(),
		NewIDs: n.newIDs.Load(), BytesOut: n.bytesOut.Load(), BytesIn: n.bytesIn.Load(), RawOut: n.rawOut.Load(), RawIn: n.rawIn.Load(),
		Batches: n.batches.Load(), Messages: n.messages.Load(), Bad: n.bad.Load(), Aborted: n.aborted.Load(),
		Produce: n.produce.Load(), Fetch: n.fetch.Load(), Metadata: n.metadata.Load(), InitProducerID: n.initID.Load(),
		Offsets: n.offsets.Load(), Commits: n.commits.Load(), Heartbeats: n.hb.Load(), Joins: n.jn.Load(),
	}
}
