package streams

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// The classic group protocol, written here: kafka-go v0.4.51 reads the heartbeat's answer with its two fields swapped,
// so that a member never hears of a rebalance, and does not send heartbeats to the group's coordinator. See also coordinator.go. The newest
// versions without flexible encoding; all know static members.
const (
	versionJoinGroup  = 5
	versionSyncGroup  = 3
	versionHeartbeat  = 3
	versionLeaveGroup = 3

	versionOffsetCommit = 7
	versionOffsetFetch  = 5
)

// appendNullable writes a string, null when it is empty.
func appendNullable(dst []byte, s string) []byte {
	if s == "" {
		return append(dst, 0xff, 0xff)
	}
	return appendString(dst, s)
}

// candidate is a member as the leader sees it when it shares out the partitions.
type candidate struct {
	id         string
	generation int32   // the last that it lived through
	owned      []int32 // its partitions then
}

// joined is the coordinator's answer to JoinGroup.
type joined struct {
	code       kafka.Error
	generation int32
	assignor   string // that all members know
	leader, id string
	members    []candidate // for the leader only
	damaged    error       // a member's subscription that cannot be read
}

func (m *member) joinGroup(ctx context.Context) (joined, error) {
	be := binary.BigEndian
	q := coordinated[joined]{api: protocol.JoinGroup, version: versionJoinGroup, wait: m.cfg.RebalanceTimeout, body: func(b []byte) []byte {
		b = be.AppendUint32(b, uint32(m.cfg.SessionTimeout.Milliseconds()))
		b = be.AppendUint32(b, uint32(m.cfg.RebalanceTimeout.Milliseconds()))
		b = appendString(b, m.id)
		b = appendNullable(b, m.cfg.Instance)
		b = appendString(b, "consumer")
		b = be.AppendUint32(b, uint32(len(m.cfg.assignors)))
		sub := m.subscription()
		for _, assignor := range m.cfg.assignors {
			b = appendString(b, assignor)
			b = append(be.AppendUint32(b, uint32(len(sub))), sub...)
		}
		return b
	}, parse: parseJoined, code: func(j joined) kafka.Error { return j.code }}
	return q.ask(ctx, m)
}

// subscription is the consumer protocol's, version 1: topics, user data (the generation of what is owned), owned
// partitions. It differs from the last when something has been given up, which makes the coordinator rebalance.
func (m *member) subscription() []byte {
	be := binary.BigEndian
	b := []byte{0, 1}
	b = be.AppendUint32(b, uint32(len(m.cfg.Streams)))
	for _, s := range m.cfg.Streams {
		b = appendString(b, s)
	}
	b = be.AppendUint32(b, 4)
	b = be.AppendUint32(b, uint32(m.joined))
	return appendAssigned(b, m.cfg.Streams[:1], m.claims())
}

// appendAssigned writes the same partitions of each stream.
func appendAssigned(b []byte, names []string, partitions []int32) []byte {
	be := binary.BigEndian
	b = be.AppendUint32(b, uint32(len(names)))
	for _, s := range names {
		b = appendString(b, s)
		b = be.AppendUint32(b, uint32(len(partitions)))
		for _, p := range partitions {
			b = be.AppendUint32(b, uint32(p))
		}
	}
	return b
}

// assigned reads the partitions of the first stream.
func (p *parser) assigned() (out []int32) {
	for i := range p.array(6) {
		p.string()
		for range p.array(4) {
			if n := p.int32(); i == 0 {
				out = append(out, n)
			}
		}
	}
	return out
}

func parseJoined(p *parser) (j joined) {
	p.int32()
	j.code, j.generation = kafka.Error(p.int16()), p.int32()
	j.assignor, j.leader, j.id = p.string(), p.string(), p.string()
	for range p.array(8) {
		c := candidate{id: p.string(), generation: -1}
		p.string()
		sub := parser{b: p.take(max(int(p.int32()), 0))}
		version := sub.int16()
		for range sub.array(2) {
			sub.string()
		}
		data := parser{b: sub.take(max(int(sub.int32()), 0))}
		if version >= 1 && len(data.b) == 4 {
			c.generation = data.int32()
			c.owned = sub.assigned()
		}
		if sub.err != nil {
			j.damaged = fmt.Errorf("subscription of member %s: %w", c.id, sub.err)
		}
		j.members = append(j.members, c)
	}
	return j
}

// synced is the coordinator's answer to SyncGroup.
type synced struct {
	code       kafka.Error
	partitions []int32
}

// syncGroup hands in the leader's plan (nil from the others) and gives this member's part of it.
func (m *member) syncGroup(ctx context.Context, generation int32, plan map[string][]int32) (synced, error) {
	be := binary.BigEndian
	q := coordinated[synced]{api: protocol.SyncGroup, version: versionSyncGroup, proves: true, wait: m.cfg.RebalanceTimeout, body: func(b []byte) []byte {
		b = be.AppendUint32(b, uint32(generation))
		b = appendNullable(appendString(b, m.id), m.cfg.Instance)
		b = be.AppendUint32(b, uint32(len(plan)))
		for id, partitions := range plan {
			part := appendAssigned([]byte{0, 1}, m.cfg.Streams, partitions)
			part = append(part, 0xff, 0xff, 0xff, 0xff) // no user data
			b = appendString(b, id)
			b = append(be.AppendUint32(b, uint32(len(part))), part...)
		}
		return b
	}, parse: func(p *parser) (s synced) {
		p.int32()
		s.code = kafka.Error(p.int16())
		if part := (parser{b: p.take(max(int(p.int32()), 0))}); len(part.b) > 0 {
			part.int16()
			s.partitions = part.assigned()
			p.err = part.err
		}
		return s
	}, code: func(s synced) kafka.Error { return s.code }}
	return q.ask(ctx, m)
}

func (m *member) sendHeartbeat(ctx context.Context) (kafka.Error, error) {
	q := coordinated[kafka.Error]{api: protocol.Heartbeat, version: versionHeartbeat, body: func(b []byte) []byte {
		b = binary.BigEndian.AppendUint32(b, uint32(m.generation))
		return appendNullable(appendString(b, m.id), m.cfg.Instance)
	}, parse: parseCode, code: itself}
	return q.ask(ctx, m)
}

func (m *member) leaveGroup(ctx context.Context) (kafka.Error, error) {
	q := coordinated[kafka.Error]{api: protocol.LeaveGroup, version: versionLeaveGroup, body: func(b []byte) []byte {
		b = binary.BigEndian.AppendUint32(b, 1)
		return appendNullable(appendString(b, m.id), m.cfg.Instance)
	}, parse: parseCode, code: itself}
	return q.ask(ctx, m)
}

func parseCode(p *parser) kafka.Error {
	p.int32()
	return kafka.Error(p.int16())
}

func itself(code kafka.Error) kafka.Error { return code }
