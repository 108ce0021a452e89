package session

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"hearthline/ingest/mqtt"
)

// line is a Link that keeps what is sent, in words: "PUBLISH 1 q1 dup retain homes/a/x=1 ids=[3]".
type line struct {
	mu       sync.Mutex
	version  byte
	bytes    []byte
	closed   bool
	full     bool
	topicMap map[uint16]string
}

func (l *line) Add(size int, encode func(b []byte) []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.full {
		return false
	}
	l.bytes = encode(l.bytes)
	return true
}
func (l *line) FlushApart()  {}
func (l *line) FinishApart() { l.mu.Lock(); defer l.mu.Unlock(); l.closed = true }

// said gives what was sent since it was last asked.
func (l *line) said(t testing.TB) []string {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for len(l.bytes) > 0 {
		kind, flags, body, size, err := mqtt.Frame(l.bytes, 1<<20)
		if err != nil || size == 0 {
			t.Fatalf("what was sent is no packet: % x, %v", l.bytes, err)
		}
		pk := packets.Packet{ProtocolVersion: l.version, FixedHeader: packets.FixedHeader{Type: kind, Remaining: len(body), Qos: flags >> 1 & 3, Retain: flags&1 != 0, Dup: flags&8 != 0}}
		body = bytes.Clone(body)
		l.bytes = l.bytes[size:]
		switch kind {
		case packets.Connack:
			err = pk.ConnackDecode(body)
			out = append(out, fmt.Sprintf("CONNACK present=%t", pk.SessionPresent))
		case packets.Pubrel:
			err = pk.PubrelDecode(body)
			out = append(out, fmt.Sprintf("PUBREL %d", pk.PacketID)+code(pk.ReasonCode))
		case packets.Disconnect:
			err = pk.DisconnectDecode(body)
			out = append(out, "DISCONNECT"+code(pk.ReasonCode))
		case packets.Publish:
			err = pk.PublishDecode(body)
			out = append(out, l.publish(&pk))
		default:
			t.Fatalf("packet type %d was sent", kind)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func code(c byte) string {
	if c == 0 {
		return ""
	}
	return fmt.Sprintf(" %#x", c)
}

func (l *line) publish(pk *packets.Packet) string {
	var b strings.Builder
	fmt.Fprintf(&b, "PUBLISH %d q%d", pk.PacketID, pk.FixedHeader.Qos)
	if pk.FixedHeader.Dup {
		b.WriteString(" dup")
	}
	if pk.FixedHeader.Retain {
		b.WriteString(" retain")
	}
	topic := pk.TopicName
	if pk.Properties.TopicAliasFlag {
		if l.topicMap == nil {
			l.topicMap = map[uint16]string{}
		}
		if topic == "" {
			topic = "~" + l.topicMap[pk.Properties.TopicAlias]
		} else {
			l.topicMap[pk.Properties.TopicAlias] = topic
		}
	}
	fmt.Fprintf(&b, " %s=%s", topic, pk.Payload)
	if len(pk.Properties.SubscriptionIdentifier) > 0 {
		ids := slices.Sorted(slices.Values(pk.Properties.SubscriptionIdentifier))
		fmt.Fprintf(&b, " ids=%v", ids)
	}
	if pk.Properties.MessageExpiryInterval > 0 {
		fmt.Fprintf(&b, " expires=%d", pk.Properties.MessageExpiryInterval)
	}
	return b.String()
}

// bench is a registry, and what it publishes.
type bench struct {
	*Registry
	t     testing.TB
	mu    sync.Mutex
	wills []string
}

func newBench(t testing.TB, change ...func(*Registry)) *bench {
	b := &bench{t: t}
	b.Registry = &Registry{
		AwayMax: 100, UserAwayMax: 100, QueueMax: 100, QueueBytesMax: 1 << 20, BytesMax: 1 << 20, StoreTime: time.Second,
		Audience: NewAudience(100), Logger: slog.New(slog.DiscardHandler),
		Publish: func(m *mqtt.Message) {
			b.mu.Lock()
			b.wills = append(b.wills, string(m.Payload))
			b.mu.Unlock()
			home, _ := HomeOf(m.Topic)
			b.Audience.Publish(home, m, nil)
		},
	}
	for _, f := range change {
		f(b.Registry)
	}
	b.Open()
	return b
}

func (b *bench) left() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.wills)
}

// client is a connection of a session.
type client struct {
	*line
	*Session
	b     *bench
	terms *Terms
}

// connect is a CONNECT of a client of user u.
func (b *bench) connect(id string, change ...func(*Entry)) *client {
	b.t.Helper()
	c := &client{line: &line{version: 5}, b: b}
	c.terms = &Terms{Link: c.line, PacketMax: 1 << 20, Window: 10, Version: mqtt.V5}
	e := &Entry{Key: Key{User: "u", Client: id}, Expiry: 100, Terms: c.terms, May: func(string) bool { return true }}
	for _, f := range change {
		f(e)
	}
	e.Welcome = func(present bool) error {
		c.Add(4, func(b []byte) []byte {
			return mqtt.AppendConnack(b, c.terms.Version, &mqtt.Connack{Present: present, ReceiveMaximum: 10, PacketMax: 100})
		})
		return nil
	}
	s, _, err := b.Claim(context.Background(), e)
	if err != nil {
		b.t.Fatal(err)
	}
	c.Session = s
	return c
}

func clean(e *Entry)                     { e.Clean = true }
func expiry(seconds uint32) func(*Entry) { return func(e *Entry) { e.Expiry = seconds } }
func terms(f func(*Terms)) func(*Entry)  { return func(e *Entry) { f(e.Terms) } }
func willed(m string, d uint32) func(e *Entry) {
	return func(e *Entry) { e.Will = &Will{Message: *message("homes/a/will", m), Delay: d} }
}

func (c *client) leave(willed bool) {
	if !willed {
		c.DiscardWill(c.terms)
	}
	c.b.Leave(c.Session, c.terms)
}

func (c *client) subscribe(filter string, options byte, id uint32) {
	c.b.t.Helper()
	_, plain, bad := mqtt.Shared(filter)
	home, ok := HomeOf(plain)
	if bad != "" || !ok {
		c.b.t.Fatal(filter, bad)
	}
	if _, ok := c.b.Audience.Subscribe(home, c.Session, Subscription{Filter: filter, Options: options, ID: id}); !ok {
		c.b.t.Fatal("no room for", filter)
	}
}

func (c *client) ack(kind byte, id uint16, code ...byte) {
	c.b.t.Helper()
	p := mqtt.AckPacket{ID: id}
	if len(code) > 0 {
		p.Code = code[0]
	}
	if err := c.Acknowledged(c.terms, kind, p); err != nil {
		c.b.t.Fatal(err)
	}
}

// publish sends a message, and says for how many it is on its way.
func (b *bench) publish(qos byte, topic, payload string, change ...func(*mqtt.Message)) int {
	home, _ := HomeOf(topic)
	m := &mqtt.Message{Topic: topic, Payload: []byte(payload), Qos: qos}
	for _, f := range change {
		f(m)
	}
	n, _ := b.Audience.Publish(home, m, nil)
	return n
}

func (c *client) want(what string, want ...string) {
	c.b.t.Helper()
	if got := c.said(c.b.t); !slices.Equal(got, want) {
		c.b.t.Errorf("%s:\ngot  %q\nwant %q", what, got, want)
	}
}

// shelf is a Store in memory, which keeps sessions as text: what is not stored is lost.
type shelf struct {
	mu     sync.Mutex
	states map[Key][]byte
	calls  []string
	fail   error
}

func (s *shelf) did(what string, key Key) error {
	s.calls = append(s.calls, what+" "+key.Client)
	return s.fail
}

func (s *shelf) Load(_ context.Context, key Key) (*State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, ok := s.states[key]
	if err := s.did("load", key); err != nil || !ok {
		return nil, err
	}
	st := new(State)
	return st, json.Unmarshal(text, st)
}

func (s *shelf) Save(_ context.Context, st *State) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.did("save", st.Key); err != nil {
		return err
	}
	text, err := json.Marshal(st)
	if s.states == nil {
		s.states = make(map[Key][]byte)
	}
	s.states[st.Key] = text
	return err
}

func (s *shelf) Delete(_ context.Context, key Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.did("delete", key); err != nil {
		return err
	}
	delete(s.states, key)
	return nil
}

func (s *shelf) keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for k := range maps.Keys(s.states) {
		out = append(out, k.Client)
	}
	slices.Sort(out)
	return out
}
