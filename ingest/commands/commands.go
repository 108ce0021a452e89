package commands

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/ingest/latency"
	"hearthline/ingest/peers/peerspb"
	"hearthline/ingest/table"
)

// Settings are those of commands.
type Settings struct {
	TTL          time.Duration `yaml:"ttl"`           // until the deadline of a command that names none
	TTLMax       time.Duration `yaml:"ttl_max"`       // at most
	Keep         time.Duration `yaml:"keep"`          // how long what has ended can be asked for
	Grace        time.Duration `yaml:"grace"`         // how long after its deadline a hub may still report what it has been sent
	ArgumentsMax int           `yaml:"arguments_max"` // bytes
	DeviceMax    int           `yaml:"device_max"`    // commands of one device that have not ended
	StreamsMax   int           `yaml:"streams_max"`   // event streams (SSE) of this gateway
	SendsMax     int           `yaml:"sends_max"`     // commands that are being sent at once; more wait
}

// Defaults gives the default settings.
func Defaults() Settings {
	return Settings{TTL: time.Minute, TTLMax: 24 * time.Hour, Keep: time.Hour, Grace: 10 * time.Second,
		ArgumentsMax: 16 << 10, DeviceMax: 64, StreamsMax: 1000, SendsMax: 256}
}

// Validate says what is wrong with the settings by themselves.
func (s *Settings) Validate() error {
	var errs []error
	for _, d := range []struct {
		name         string
		value, least time.Duration
	}{{"ttl", s.TTL, time.Millisecond}, {"ttl_max", s.TTLMax, s.TTL}, {"keep", s.Keep, time.Millisecond}, {"grace", s.Grace, 0}} {
		if d.value < d.least {
			errs = append(errs, fmt.Errorf("%s is %s; want %s or more", d.name, d.value, d.least))
		}
	}
	for _, n := range []struct {
		name       string
		value, max int
	}{{"arguments_max", s.ArgumentsMax, 128 << 10}, {"device_max", s.DeviceMax, 1 << 24}, {"streams_max", s.StreamsMax, 1 << 24}, {"sends_max", s.SendsMax, 1 << 24}} {
		if n.value < 1 || n.value > n.max {
			errs = append(errs, fmt.Errorf("%s is %d; want 1 to %d", n.name, n.value, n.max))
		}
	}
	return errors.Join(errs...)
}

// Hubs are the hubs that are connected to this gateway.
type Hubs interface {
	// Hand sends a message to the hubs here that have subscribed to its topic. It does not wait. delivered is called later, when one
	// of them has acknowledged it. It says false when there is none, or none that can take it now.
	Hand(home string, m Message, delivered func()) bool
}

// Others are the other gateways; *peers.Peers is.
type Others interface {
	// Listeners are those whose clients have subscribed to a topic.
	Listeners(home, topic string) []string
	// Command hands a command to one of them.
	Command(ctx context.Context, start string, command []byte) (peerspb.CommandReply_Outcome, error)
}

// Commands of one gateway. Set the exported fields, call Prepare, prepare and run the table, then Run.
type Commands struct {
	Settings
	Table   *table.Table // with Rule as its rule; Commands sets its Changed
	Hubs    Hubs
	Others  Others
	Gateway string         // this gateway's start
	Audit   func(*Command) // is told each step that this gateway saw, once it stands; may be nil
	Now     func() time.Time
	Logger  *slog.Logger
	// Draining is closed when event streams are to end; nil: never.
	Draining <-chan struct{}

	work  conc.WaitGroup
	sends chan struct{}

	mu       sync.Mutex
	flight   map[string]*flight // by key: what this gateway has sent, until its end
	active   map[string]int     // by home/device: commands that have not ended
	open     [Executed]int64    // by state, likewise
	timers   timers
	timer    chan struct{}
	followed map[string][]func(*Command) // by key: who asked to be told
	streams  atomic.Int64
	last     atomic.Int64 // instant of the last command
	count    counters
}

// flight is a command that this gateway has sent, or is about to.
type flight struct {
	mu      sync.Mutex
	sent    bool          // a hub's connection took it
	cmd     *Command      // as it was sent
	pending []State       // steps that wait until the table has the command, so that they stand behind it
	known   chan struct{} // closed when it has
}

type counters struct {
	accepted, repeated, sent, delivered, executed, failed, expired, away, rerouted atomic.Int64
	untilDelivered, untilExecuted                                                  latency.Meter
}

// Stats are the counters. Steps count at the gateway that saw them.
type Stats struct {
	Accepted, Repeated, Sent, Delivered, Executed, Failed, Expired int64
	Away                                                           int64             // sent to nobody at first: no gateway had the hub
	Rerouted                                                       int64             // looked for a second time: the gateway that had the hub no longer did
	Active                                                         int64             // that have not ended, of all gateways
	Open                                                           [Executed]int64   // of them, by the state they are in
	UntilDelivered, UntilExecuted                                  latency.Histogram // since they were accepted, by the clocks of the gateways that saw both
	Streams                                                        int64             // event streams that are open
}

// Stats gives the counters.
func (c *Commands) Stats() Stats {
	n := &c.count
	s := Stats{Accepted: n.accepted.Load(), Repeated: n.repeated.Load(), Sent: n.sent.Load(), Delivered: n.delivered.Load(),
		Executed: n.executed.Load(), Failed: n.failed.Load(), Expired: n.expired.Load(), Away: n.away.Load(), Rerouted: n.rerouted.Load(),
		UntilDelivered: n.untilDelivered.Read(), UntilExecuted: n.untilExecuted.Read(), Streams: c.streams.Load()}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, active := range c.active {
		s.Active += int64(active)
	}
	s.Open = c.open
	return s
}

// Prepare checks the settings and hooks the table up. The table is prepared after it.
func (c *Commands) Prepare() error {
	if err := c.Validate(); err != nil {
		return fmt.Errorf("commands: %w", err)
	}
	if c.Table == nil || c.Hubs == nil || c.Others == nil || c.Gateway == "" {
		return errors.New("commands: no table, hubs, others or gateway")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.flight, c.active, c.followed = map[string]*flight{}, map[string]int{}, map[string][]func(*Command){}
	c.timer = make(chan struct{}, 1)
	c.sends = make(chan struct{}, c.SendsMax)
	c.Table.Rule, c.Table.Changed = Rule, c.changed
	return nil
}

// Run sees to deadlines until ctx ends, and then waits for what is being sent.
func (c *Commands) Run(ctx context.Context) error {
	defer c.work.Wait()
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-wait.C:
		case <-c.timer:
		case <-ctx.Done():
			return nil
		}
		now := c.Now()
		var due []timer
		next := time.Hour
		c.mu.Lock()
		for len(c.timers) > 0 {
			if d := c.timers[0].at.Sub(now); d > 0 {
				next = min(next, d)
				break
			}
			due = append(due, heap.Pop(&c.timers).(timer))
		}
		c.mu.Unlock()
		wait.Reset(next)
		for _, t := range due {
			c.due(t.key, now)
		}
	}
}
