package streams

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// A member finds its group's coordinator once and keeps to it until it fails. kafka-go would ask before each request, whichever broker
// comes: one that is cut off from the others still names the coordinator of before, and that one, cut off too, still answers, with commits
// that others have gone on from since. It takes none itself, and lets nobody into a new generation. So commits are read only from
// the broker that did one of the two for this member last. Who comes back to such a broker as a member of its old generation gets
// old commits all the same, and can make none: what is done before a commit is what was done before, done again.

// noBroker is a coordinator that has to be found.
const noBroker = -1

// notSent is an error because of which a request did not leave.
type notSent struct{ error }

func (e notSent) Unwrap() error { return e.error }

// coordinatorNow gives the broker that the group's requests go to.
func (m *member) coordinatorNow(ctx context.Context) (int32, error) {
	m.mu.Lock()
	broker := m.coordinator
	m.mu.Unlock()
	if broker != noBroker {
		return broker, nil
	}
	res, err := m.c.kafka.FindCoordinator(ctx, &kafka.FindCoordinatorRequest{Key: m.cfg.ID, KeyType: kafka.CoordinatorKeyTypeConsumer})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return noBroker, notSent{fmt.Errorf("find the coordinator of group %s: %w", m.cfg.ID, err)}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.coordinator == noBroker { // nobody was faster
		m.coordinator = int32(res.Coordinator.NodeID)
	}
	return m.coordinator, nil
}

// forget has the coordinator found anew, if it is that broker.
func (m *member) forget(broker int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.coordinator == broker {
		m.coordinator, m.proven = noBroker, noBroker
	}
}

// coordinated is a request of the group protocol.
type coordinated[T any] struct {
	api     protocol.ApiKey
	version int16
	wait    time.Duration // that the broker may take beyond the request timeout
	body    func([]byte) []byte
	parse   func(*parser) T
	code    func(T) kafka.Error // of the answer
	proves  bool                // that who answered without an error is the coordinator now
}

// ask sends it to the coordinator.
func (q *coordinated[T]) ask(ctx context.Context, m *member) (v T, err error) {
	broker, err := m.coordinatorNow(ctx)
	if err != nil {
		return v, err
	}
	if v, err = q.askBroker(ctx, m, broker); err == nil && q.code(v) == 0 && q.proves {
		m.mu.Lock()
		m.coordinator, m.proven = broker, broker
		m.mu.Unlock()
	}
	return v, err
}

func (q *coordinated[T]) askBroker(ctx context.Context, m *member, broker int32) (v T, err error) {
	res, err := m.c.exchange(ctx, q.api, q.wait, routed{&raw{
		api: q.api, limit: responseBytesMax,
		request: endRequest(q.body(appendString(beginRequest(nil, q.api, q.version, m.c.cfg.ClientID, false), m.cfg.ID))),
		parse:   func(p *parser) protocol.Message { return &answer[T]{q.api, q.parse(p)} },
		route: func(c protocol.Cluster) (protocol.Broker, error) {
			if b, ok := c.Brokers[broker]; ok {
				return b, nil
			}
			return protocol.Broker{ID: noBroker}, kafka.BrokerNotAvailable
		},
	}})
	if err != nil {
		m.forget(broker)
		return v, err
	}
	v = res.(*answer[T]).v
	switch q.code(v) {
	case kafka.NotCoordinatorForGroup, kafka.GroupCoordinatorNotAvailable:
		m.forget(broker)
	}
	return v, nil
}

// sendCommit commits in the name of a generation. The code is that of the first partition that was refused.
func (m *member) sendCommit(ctx context.Context, id string, generation int32, commits []Commit) (refusal, error) {
	be := binary.BigEndian
	q := coordinated[refusal]{
		api: protocol.OffsetCommit, version: versionOffsetCommit, proves: true,
		body: func(b []byte) []byte {
			b = be.AppendUint32(b, uint32(generation))
			b = appendNullable(appendString(b, id), m.cfg.Instance)
			b = be.AppendUint32(b, uint32(len(commits)))
			for _, cm := range commits {
				b = appendString(b, cm.Stream)
				b = be.AppendUint32(b, 1)
				b = be.AppendUint32(b, uint32(cm.Partition))
				b = be.AppendUint64(b, uint64(cm.Offset))
				b = be.AppendUint32(b, 0xffffffff) // leader epoch unknown
				b = appendString(b, cm.Metadata)
			}
			return b
		},
		parse: func(p *parser) (first refusal) {
			p.int32()
			for range p.array(6) {
				stream := p.string()
				for range p.array(6) {
					partition, code := p.int32(), kafka.Error(p.int16())
					if first.code == 0 && code != 0 {
						first = refusal{stream, partition, code}
					}
				}
			}
			return first
		},
		code: func(r refusal) kafka.Error { return r.code },
	}
	return q.ask(ctx, m)
}

// refusal is a partition whose commit was refused, or the group, with an error code; 0 is none.
type refusal struct {
	stream    string
	partition int32
	code      kafka.Error
}

// commits is what a coordinator knows of a group's.
type commits struct {
	refusal
	of map[string]map[int32]Committed
}

// committed reads what the group has committed for partitions that have become this member's. Where the broker that let this member into its
// generation can no longer be asked, another generation has to come: errChanged.
func (m *member) committed(ctx context.Context, partitions []int32) (out map[string]map[int32]Committed, err error) {
	q := coordinated[commits]{
		api: protocol.OffsetFetch, version: versionOffsetFetch,
		body: func(b []byte) []byte {
			return appendAssigned(b, m.cfg.Streams, partitions)
		},
		parse: parseCommits,
		code:  func(c commits) kafka.Error { return c.code },
	}
	err = m.c.retry(ctx, "read the commits of group "+m.cfg.ID, func(ctx context.Context) error {
		m.mu.Lock()
		broker := m.proven
		m.mu.Unlock()
		if broker == noBroker {
			return final{errChanged}
		}
		got, err := q.askBroker(ctx, m, broker)
		switch {
		case err != nil:
			return err
		case got.code == kafka.GroupIdNotFound: // some brokers say so of a group that has committed nothing
		case got.code != 0:
			return fmt.Errorf("%s/%d: %w", got.stream, got.partition, got.code)
		}
		out = got.of
		return nil
	})
	return out, err
}

func parseCommits(p *parser) commits {
	c := commits{of: map[string]map[int32]Committed{}}
	p.int32()
	for range p.array(6) {
		stream := p.string()
		c.of[stream] = map[int32]Committed{}
		for range p.array(20) {
			partition, offset := p.int32(), p.int64()
			p.int32()
			metadata := p.string()
			if code := kafka.Error(p.int16()); code != 0 && c.code == 0 {
				c.refusal = refusal{stream, partition, code}
			}
			if offset >= 0 {
				c.of[stream][partition] = Committed{offset, metadata}
			}
		}
	}
	if code := kafka.Error(p.int16()); code != 0 {
		c.refusal = refusal{code: code}
	}
	return c
}
