package streams_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"hearthline/streams"
	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
	"hearthline/streams/streamstest"
)

// mesh is the network between the brokers of a cluster, which can be cut. Clients have another.
type mesh struct {
	t *testing.T

	mu   sync.Mutex
	cut  func(from, to int) bool // nil: whole
	heal chan struct{}           // closed when what is cut now is whole again
	lost int                     // connections on which something was lost
}

func newMesh(t *testing.T) *mesh { return &mesh{t: t} }

// between is for [apache.Cluster.Between].
func (m *mesh) between(broker int, replicas, quorum string) (replicasAt, quorumAt string) {
	return m.listen(broker, replicas), m.listen(broker, quorum)
}

func (m *mesh) listen(broker int, target string) string {
	l, err := listenLow("tcp", "")
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			go m.join(near, target, broker)
		}
	}()
	return l.Addr().String()
}

// join carries one connection. Its first request says whose it is.
func (m *mesh) join(near net.Conn, target string, to int) {
	defer near.Close()
	first, err := readFrame(near)
	if err != nil || len(first) < 14 {
		return
	}
	from := apachetest.BrokerOf(string(first[14 : 14+max(0, int(int16(binary.BigEndian.Uint16(first[12:]))))]))
	if !m.passes(from, to) {
		return
	}
	far, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer far.Close()
	if _, err := far.Write(first); err != nil {
		return
	}
	go func() {
		defer near.Close()
		m.carry(far, near, to, from)
	}()
	m.carry(near, far, from, to)
}

func (m *mesh) carry(near, far net.Conn, from, to int) {
	b := make([]byte, 64<<10)
	for {
		n, err := near.Read(b)
		if err != nil || !m.passes(from, to) {
			return
		}
		if _, err := far.Write(b[:n]); err != nil {
			return
		}
	}
}

// passes is at once true where the way is whole. Where it is cut it is false, once it is whole again: nobody is told of a cut.
func (m *mesh) passes(from, to int) bool {
	m.mu.Lock()
	// 0 is a client of the test.
	if m.cut == nil || from == 0 || to == 0 || !m.cut(from, to) {
		m.mu.Unlock()
		return true
	}
	m.lost++
	heal := m.heal
	m.mu.Unlock()
	<-heal
	return false
}

// part cuts ways until the function that it gives is called, which says on how many connections something was lost.
func (m *mesh) part(cut func(from, to int) bool) (healed func() (lost int)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	heal := make(chan struct{})
	m.cut, m.heal, m.lost = cut, heal, 0
	var once sync.Once
	whole := func() (lost int) {
		once.Do(func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.cut, lost = nil, m.lost
			close(heal)
		})
		return lost
	}
	m.t.Cleanup(func() { whole() })
	return whole
}

// apart cuts brokers off from each other while clients reach all of them: the leader of a partition, and the active controller when it leads
// one, wholly, until others have taken over what they led; the leader in one direction, so that it keeps what it leads for a while
// and can have nothing copied.
func apart(t *testing.T, c *apache.Cluster, m *mesh, stream string) {
	ctx := longPatience(t)
	admin, err := c.Admin()
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	for _, cut := range []struct {
		what string
		who  func() int
		both bool // directions
	}{
		{"the leader", func() int { return leaderNow(t, admin, stream) }, true},
		{"the controller", func() int {
			id, err := c.Controller(ctx)
			if err != nil {
				t.Fatal(err)
			}
			lead(t, c, stream, int32(id)) // a partition, too
			return id
		}, true},
		{"what others send to the leader", func() int { return leaderNow(t, admin, stream) }, false},
	} {
		time.Sleep(2 * time.Second) // what is tested is what goes on meanwhile
		whom := cut.who()
		others, err := c.Admin(whom%3+1, (whom+1)%3+1)
		if err != nil {
			t.Fatal(err)
		}
		healed := m.part(func(from, to int) bool { return to == whom || cut.both && from == whom })
		if cut.both {
			again(t, fmt.Sprintf("another leads than broker %d", whom), func() error {
				if now := leader(t, others, stream); now <= 0 || int(now) == whom {
					return fmt.Errorf("%d leads", now)
				}
				return nil
			})
			time.Sleep(3 * time.Second) // two that both take themselves for the leader
			oblivious(t, c, whom, "the leader", func(alone *kgo.Client) int { return int(leader(t, alone, stream)) })
		} else {
			time.Sleep(9 * time.Second) // three times as long as a controller waits for a broker
		}
		lost := healed()
		others.Close()
		t.Logf("%s, broker %d, cut off: something was lost on %d connections", cut.what, whom, lost)
		if lost == 0 {
			t.Errorf("%s was cut off, and nobody had anything to say to it", cut.what)
		}
		again(t, "all replicas in sync", func() error { return inSync(t, admin, stream, 3) })
	}
	time.Sleep(2 * time.Second)
}

// oblivious: a broker that is cut off takes itself for what it was: it hears nothing of the others, by no other way either.
func oblivious(t *testing.T, c *apache.Cluster, broker int, what string, asked func(alone *kgo.Client) int) {
	t.Helper()
	alone, err := c.Admin(broker)
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	if now := asked(alone); now != broker {
		t.Errorf("broker %d is cut off, and has heard that %d is %s", broker, now, what)
	}
}

// coordinatorApart: a group's coordinator is cut off from the other brokers, and one of them takes its place. Both answer clients. Members
// that come one after the other find what the last one has committed, whoever they happen to ask.
func coordinatorApart(t *testing.T, c *apache.Cluster, cl streamstest.Cluster, m *mesh) {
	admin, err := c.Admin()
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	stream := streamstest.Stream(t, cl.Dial(t), 1)
	group := streams.GroupConfig{ID: stream + ".group", Streams: []string{stream}, Heartbeat: 100 * time.Millisecond,
		SessionTimeout: time.Second, RebalanceTimeout: 2 * time.Second}
	tried, last, members := int64(0), int64(0), 0 // the last offset that was tried to commit, and the last that was
	one := func(ctx context.Context) {
		ctx, leave := context.WithTimeout(ctx, 10*time.Second)
		defer leave()
		err := cl.Dial(t).Join(ctx, group, func(live context.Context, g *streams.Assignment) error {
			defer leave()
			at := g.Committed()[stream].Offset
			if at < last || at > tried {
				t.Errorf("a member is told %d was committed; that was %d, and %d was tried", at, last, tried)
			}
			tried = max(tried, at) + 1
			if err := g.Commit(live, []streams.Commit{{Stream: stream, Offset: tried}}); err == nil {
				last = tried
				members++
			} else if !errors.Is(err, streams.ErrFenced) && live.Err() == nil {
				t.Logf("commit of %d: %v", tried, err)
			}
			return nil
		})
		if err != nil && ctx.Err() == nil {
			t.Errorf("join: %v", err)
		}
	}
	some := func(what string) {
		for n, late := members+3, time.Now().Add(streamstest.Patience); members < n && time.Now().Before(late); {
			one(t.Context())
		}
		t.Logf("%s: %d commits of %d members", what, last, members)
	}
	some("whole")
	whom := coordinatorOf(t, admin, group.ID)
	healed := m.part(func(from, to int) bool { return from == whom || to == whom })
	before := members
	for begun := time.Now(); time.Since(begun) < 15*time.Second || members < before+3 && time.Since(begun) < 2*streamstest.Patience; {
		one(t.Context())
	}
	oblivious(t, c, whom, "the coordinator", func(alone *kgo.Client) int { return coordinatorOf(t, alone, group.ID) })
	t.Logf("coordinator %d cut off: %d more members committed; something was lost on %d connections", whom, members-before, healed())
	if members < before+3 {
		t.Errorf("%d members could commit while the coordinator was cut off, want 3", members-before)
	}
	some("whole again")
	again(t, "all replicas in sync", func() error { return inSync(t, admin, stream, 3) })
}
