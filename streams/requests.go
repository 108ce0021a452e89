package streams

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"slices"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// The versions spoken: the newest that need no flexible encoding, where there is a choice. Kafka 4.x speaks them all.
const (
	versionListOffsets    = 5
	versionMetadata       = 10 // the first with topic ids
	versionInitProducerID = 1
	versionProduce        = 8
	// The last that only leaders answer. From 11 on a broker that leads no more goes on serving a reader as a follower: it holds the
	// request for all of its wait and learns what may be read late, and the reader does not hear that its leader has moved.
	versionFetch = 10
)

// raw makes an exchange of two functions.
type raw struct {
	api     protocol.ApiKey
	request []byte // complete; only read
	limit   int
	parse   func(*parser) protocol.Message // called on a pooled buffer, which it must not keep
	route   func(protocol.Cluster) (protocol.Broker, error)
}

func (r *raw) ApiKey() protocol.ApiKey                 { return r.api }
func (r *raw) Required(map[protocol.ApiKey]int16) bool { return true }
func (r *raw) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	b, err := swap(rw, r.request, r.limit)
	if err != nil {
		return nil, err
	}
	defer giveBuffer(b)
	p := parser{b: b}
	m := r.parse(&p)
	if p.err != nil {
		return nil, fmt.Errorf("%v response: %w", r.api, p.err)
	}
	return m, nil
}

// routed is a raw exchange with a certain broker.
type routed struct{ *raw }

func (r routed) Broker(c protocol.Cluster) (protocol.Broker, error) { return r.route(c) }

// answer is a response of ours: kafka-go wants a message.
type answer[T any] struct {
	api protocol.ApiKey
	v   T
}

func (a *answer[T]) ApiKey() protocol.ApiKey { return a.api }

// checkVersions asks the broker at the other end of a connection what it speaks.
func (c *Client) checkVersions(conn io.ReadWriter) error {
	type span struct{ min, max int16 }
	req := &raw{
		api:     protocol.ApiVersions,
		request: endRequest(beginRequest(nil, protocol.ApiVersions, 0, c.cfg.ClientID, false)),
		limit:   1 << 20,
		parse: func(p *parser) protocol.Message {
			spans := map[protocol.ApiKey]span{}
			p.int16()
			for range p.array(6) {
				spans[protocol.ApiKey(p.int16())] = span{p.int16(), p.int16()}
			}
			return &answer[map[protocol.ApiKey]span]{protocol.ApiVersions, spans}
		},
	}
	res, err := req.RawExchange(conn)
	if err != nil {
		return err
	}
	spans := res.(*answer[map[protocol.ApiKey]span]).v
	for api, want := range map[protocol.ApiKey]int16{
		protocol.Produce: versionProduce, protocol.Fetch: versionFetch, protocol.ListOffsets: versionListOffsets,
		protocol.Metadata: versionMetadata, protocol.InitProducerId: versionInitProducerID,
		protocol.JoinGroup: versionJoinGroup, protocol.SyncGroup: versionSyncGroup, protocol.Heartbeat: versionHeartbeat,
		protocol.LeaveGroup: versionLeaveGroup, protocol.OffsetCommit: versionOffsetCommit, protocol.OffsetFetch: versionOffsetFetch,
	} {
		if s, ok := spans[api]; !ok || want < s.min || want > s.max {
			return final{fmt.Errorf("the broker is too old or too new: it speaks %v versions %d to %d; want %d: use Apache Kafka 2.8 to 4", api, s.min, s.max, want)}
		}
	}
	return nil
}

// topicInfo is a topic as Metadata describes it.
type topicInfo struct {
	code       kafka.Error
	id         string // 32 hexadecimal digits
	partitions int
	leaderless int // partitions without a leader, for now
	replicas   int // copies of the partition that has fewest
	brokers    int // of the cluster
}

// metadataRequest asks a broker about topics; with none it only shows that a broker answers.
func (c *Client) metadataRequest(topics []string) *raw {
	b := beginRequest(nil, protocol.Metadata, versionMetadata, c.cfg.ClientID, true)
	b = binary.AppendUvarint(b, uint64(len(topics)+1))
	for _, t := range topics {
		b = append(b, make([]byte, 16)...) // by name, not by id
		b = append(binary.AppendUvarint(b, uint64(len(t)+1)), t...)
		b = append(b, 0)
	}
	b = append(b, 0, 0, 0, 0) // create none, no authorized operations (twice), no tags
	return &raw{api: protocol.Metadata, request: endRequest(b), limit: responseBytesMax, parse: parseMetadata}
}

func (c *Client) metadata(ctx context.Context, topics []string) (map[string]topicInfo, error) {
	res, err := c.exchange(ctx, protocol.Metadata, 0, c.metadataRequest(topics))
	if err != nil {
		return nil, err
	}
	return res.(*answer[map[string]topicInfo]).v, nil
}

func parseMetadata(p *parser) protocol.Message {
	p.tags() // of the header
	p.int32()
	brokers := p.compactArray(11)
	for range brokers {
		p.int32()
		p.compactString()
		p.int32()
		p.compactString()
		p.tags()
	}
	p.compactString()
	p.int32()
	topics := map[string]topicInfo{}
	for range p.compactArray(26) {
		t := topicInfo{code: kafka.Error(p.int16()), brokers: brokers}
		name := p.compactString()
		t.id = hex.EncodeToString(p.take(16))
		p.int8()
		t.partitions = p.compactArray(18)
		for i := range t.partitions {
			p.int16()
			p.int32()
			if p.int32() < 0 {
				t.leaderless++
			}
			p.int32()
			replicas := p.compactArray(4)
			p.take(4 * replicas)
			if i == 0 || replicas < t.replicas {
				t.replicas = replicas
			}
			for range 2 { // in sync, offline
				p.take(4 * p.compactArray(4))
			}
			p.tags()
		}
		p.int32()
		p.tags()
		topics[name] = t
	}
	return &answer[map[string]topicInfo]{protocol.Metadata, topics}
}

// identity is what a broker knows an idempotent producer by.
type identity struct {
	id    int64
	epoch int16
}

// initProducerID takes a new identity. kafka-go's own call would ask for a transaction coordinator first, which a
// secured cluster may refuse.
func (c *Client) initProducerID(ctx context.Context) (identity, error) {
	type result struct {
		code kafka.Error
		identity
	}
	b := beginRequest(nil, protocol.InitProducerId, versionInitProducerID, c.cfg.ClientID, false)
	b = append(b, 0xff, 0xff) // no transactional id
	b = binary.BigEndian.AppendUint32(b, 0x7fffffff)
	req := &raw{api: protocol.InitProducerId, request: endRequest(b), limit: 1 << 10, parse: func(p *parser) protocol.Message {
		p.int32()
		return &answer[result]{protocol.InitProducerId, result{kafka.Error(p.int16()), identity{p.int64(), p.int16()}}}
	}}
	res, err := c.exchange(ctx, protocol.InitProducerId, 0, req)
	if err != nil {
		return identity{}, err
	}
	r := res.(*answer[result]).v
	if r.code != 0 {
		return identity{}, r.code
	}
	return r.identity, nil
}

// produced is a broker's answer to one record batch.
type produced struct {
	code   kafka.Error
	offset int64
	reason string
}

// beginProduce writes a produce request up to its record batch; endProduce fills in the sizes.
func beginProduce(dst []byte, clientID, stream string, partition, timeoutMillis int32) []byte {
	be := binary.BigEndian
	dst = beginRequest(dst, protocol.Produce, versionProduce, clientID, false)
	dst = append(dst, 0xff, 0xff) // no transaction
	dst = append(dst, 0xff, 0xff) // acks=all
	dst = be.AppendUint32(dst, uint32(timeoutMillis))
	dst = be.AppendUint32(dst, 1)
	dst = appendString(dst, stream)
	dst = be.AppendUint32(dst, 1)
	dst = be.AppendUint32(dst, uint32(partition))
	return append(dst, 0, 0, 0, 0)
}

func endProduce(b []byte, batchAt int) {
	binary.BigEndian.PutUint32(b[batchAt-4:], uint32(len(b)-batchAt))
	endRequest(b)
}

func (c *Client) produce(ctx context.Context, stream string, partition int32, request []byte) (produced, error) {
	res, err := c.exchange(ctx, protocol.Produce, 0, routed{&raw{
		api: protocol.Produce, request: request, limit: 1 << 20, parse: parseProduce,
		route: func(cl protocol.Cluster) (protocol.Broker, error) { return leaderOf(cl, stream, partition) },
	}})
	if err != nil {
		return produced{}, err
	}
	return res.(*answer[produced]).v, nil
}

func parseProduce(p *parser) protocol.Message {
	var r produced
	for range p.array(6) {
		p.string()
		for range p.array(30) {
			p.int32()
			r.code = kafka.Error(p.int16())
			r.offset = p.int64()
			p.int64()
			p.int64()
			for range p.array(6) {
				p.int32()
				r.reason = p.string()
			}
			if s := p.string(); s != "" {
				r.reason = s
			}
		}
	}
	return &answer[produced]{protocol.Produce, r}
}

// place is a partition of a stream.
type place struct {
	stream    string
	partition int32
}

// Special times of ListOffsets.
const (
	timeLatest   = -1
	timeEarliest = -2
)

type listed struct {
	code   kafka.Error
	offset int64
}

// listOffsets asks for one offset of each place. It is sent in parts, one to each broker that leads some of them.
type listOffsets struct {
	clientID string
	time     int64
	places   []place
}

func (l *listOffsets) ApiKey() protocol.ApiKey { return protocol.ListOffsets }

// Split implements protocol.Splitter.
func (l *listOffsets) Split(cl protocol.Cluster) ([]protocol.Message, protocol.Merger, error) {
	byBroker := map[int32][]place{}
	lost := map[place]listed{}
	for _, pl := range l.places {
		b, err := leaderOf(cl, pl.stream, pl.partition)
		if code, ok := asCode(err); ok {
			lost[pl] = listed{code: code}
			continue
		}
		byBroker[b.ID] = append(byBroker[b.ID], pl)
	}
	var parts []protocol.Message
	for id, places := range byBroker {
		parts = append(parts, routed{&raw{
			api: protocol.ListOffsets, request: l.encode(places), limit: responseBytesMax, parse: parseListOffsets,
			route: func(cl protocol.Cluster) (protocol.Broker, error) { return cl.Brokers[id], nil },
		}})
	}
	return parts, mergeListed(lost), nil
}

func (l *listOffsets) encode(places []place) []byte {
	be := binary.BigEndian
	b := beginRequest(nil, protocol.ListOffsets, versionListOffsets, l.clientID, false)
	b = be.AppendUint32(b, 0xffffffff)
	b = append(b, 1) // read committed
	byStream := map[string][]int32{}
	var names []string
	for _, pl := range places {
		if byStream[pl.stream] == nil {
			names = append(names, pl.stream)
		}
		byStream[pl.stream] = append(byStream[pl.stream], pl.partition)
	}
	b = be.AppendUint32(b, uint32(len(names)))
	for _, name := range names {
		b = appendString(b, name)
		b = be.AppendUint32(b, uint32(len(byStream[name])))
		for _, p := range byStream[name] {
			b = be.AppendUint32(b, uint32(p))
			b = be.AppendUint32(b, 0xffffffff)
			b = be.AppendUint64(b, uint64(l.time))
		}
	}
	return endRequest(b)
}

func parseListOffsets(p *parser) protocol.Message {
	out := map[place]listed{}
	p.int32()
	for range p.array(6) {
		stream := p.string()
		for range p.array(26) {
			partition := p.int32()
			r := listed{code: kafka.Error(p.int16())}
			p.int64()
			r.offset = p.int64()
			p.int32()
			out[place{stream, partition}] = r
		}
	}
	return &answer[map[place]listed]{protocol.ListOffsets, out}
}

// mergeListed implements protocol.Merger; it begins with the places that have no leader.
type mergeListed map[place]listed

func (m mergeListed) Merge(_ []protocol.Message, results []any) (protocol.Message, error) {
	for _, r := range results {
		switch r := r.(type) {
		case error:
			return nil, r
		case *answer[map[place]listed]:
			for k, v := range r.v {
				m[k] = v
			}
		}
	}
	return &answer[map[place]listed]{protocol.ListOffsets, m}, nil
}

// offsets gives an offset of each place, trying again while leaders move.
func (c *Client) offsets(ctx context.Context, time int64, places []place) (map[place]int64, error) {
	out := make(map[place]int64, len(places))
	err := c.retry(ctx, "list offsets", func(ctx context.Context) error {
		rest := slices.DeleteFunc(slices.Clone(places), func(p place) bool { _, ok := out[p]; return ok })
		if len(rest) == 0 {
			return nil
		}
		res, err := c.exchange(ctx, protocol.ListOffsets, 0, &listOffsets{c.cfg.ClientID, time, rest})
		if err != nil {
			return err
		}
		var bad error
		for _, pl := range rest {
			r, ok := res.(*answer[map[place]listed]).v[pl]
			switch {
			case !ok:
				bad = fmt.Errorf("%s/%d: the broker left it out of its answer", pl.stream, pl.partition)
			case r.code != 0:
				bad = fmt.Errorf("%s/%d: %w", pl.stream, pl.partition, r.code)
			default:
				out[pl] = r.offset
			}
		}
		return bad
	})
	return out, err
}
