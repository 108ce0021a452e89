package commands

import (
	"container/heap"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/ingest/latency"
	"hearthline/ingest/mqtt"
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

func newID() string { return strings.ToLower(rand.Text()) }

// Errors of Submit.
var (
	ErrConflict = errors.New("this id was used for another command of the device")
	ErrTooMany  = errors.New("too many commands of the device have not ended")
)

// Submit accepts a command and sends it on its way. It returns when the table has it: the command as it stands there, and
// whether it is new. tell, if not nil, is called with every further step until its end, on a goroutine that must not wait.
func (c *Commands) Submit(ctx context.Context, r *Request, home, device, by string, tell func(*Command)) (*Command, bool, error) {
	cmd, err := c.command(r, home, device, by)
	if err != nil {
		return nil, false, err
	}
	key := cmd.key()
	if rec, ok := c.Table.Get(key); ok {
		return c.repeated(rec, cmd)
	}
	c.mu.Lock()
	if c.active[home+"/"+device] >= c.DeviceMax {
		c.mu.Unlock()
		return nil, false, fmt.Errorf("%w: %d", ErrTooMany, c.DeviceMax)
	}
	if tell != nil {
		c.followed[key] = append(c.followed[key], tell)
	}
	c.mu.Unlock()
	raw, err := json.Marshal(cmd)
	if err != nil {
		return nil, false, err
	}
	if err := c.accept(ctx, cmd, raw); err != nil {
		c.mu.Lock()
		delete(c.followed, key)
		c.mu.Unlock()
		return nil, false, fmt.Errorf("accept command %s: %w", cmd.ID, err)
	}
	rec, ok := c.Table.Get(key)
	if !ok {
		return cmd, true, nil // it has ended and is forgotten
	}
	stands, err := decode(rec.Value)
	if err != nil {
		return nil, false, err
	}
	if stands.Via != cmd.Via || !stands.Created.Equal(cmd.Created) { // another gateway accepted one with this id, a moment before
		return c.repeated(rec, cmd)
	}
	c.count.accepted.Add(1)
	return stands, true, nil
}

// accept writes a command into the table, and sends it meanwhile: the table is for what outlives this moment.
func (c *Commands) accept(ctx context.Context, cmd *Command, raw []byte) error {
	w, err := c.Table.Begin(ctx, cmd.key(), raw)
	if err != nil {
		return err
	}
	c.dispatch(cmd, raw)
	at, err := w.Wait(ctx)
	if err != nil {
		return err
	}
	return c.Table.Reached(ctx, at)
}

func (c *Commands) repeated(rec table.Record, asked *Command) (*Command, bool, error) {
	stands, err := decode(rec.Value)
	if err != nil {
		return nil, false, err
	}
	if !stands.same(asked) {
		return nil, false, ErrConflict
	}
	c.count.repeated.Add(1)
	return stands, false, nil
}

// dispatch sends a command on its way without waiting. Beyond SendsMax at once it is left to the table.
func (c *Commands) dispatch(cmd *Command, raw []byte) {
	if c.hand(cmd) {
		return // the hub is here
	}
	select {
	case c.sends <- struct{}{}:
	default:
		c.later(cmd.key(), c.Now().Add(retryWait))
		return
	}
	c.work.Go(func() {
		defer func() { <-c.sends }()
		c.route(cmd, raw)
	})
}

// retryWait is how long a gateway that has the hub of an accepted command lets others send it first.
const retryWait = 300 * time.Millisecond

// route hands a command to a gateway that has the hub. One that has it no longer says so; then it is looked for once more.
func (c *Commands) route(cmd *Command, raw []byte) {
	for attempt := range 2 {
		if attempt > 0 {
			c.count.rerouted.Add(1)
			if c.hand(cmd) {
				return
			}
		}
		for _, start := range c.Others.Listeners(cmd.Home, topic(cmd.Home, cmd.Device)) {
			got, err := c.Others.Command(context.Background(), start, raw) // it has a limit of its own
			if err != nil {
				c.Logger.Debug("commands: another gateway cannot be reached", "gateway", start, "command", cmd.ID, "error", err)
				continue
			}
			if got == peerspb.CommandReply_TAKEN || got == peerspb.CommandReply_EXPIRED {
				return
			}
		}
		if attempt == 0 {
			<-time.After(20 * time.Millisecond)
		}
	}
	c.count.away.Add(1)
}

// Take implements peers.Commander: a command that another gateway hands in.
func (c *Commands) Take(_ context.Context, raw []byte) peerspb.CommandReply_Outcome {
	cmd, err := decode(raw)
	if err != nil {
		c.Logger.Error("commands: another gateway sent what cannot be read", "error", err)
		return peerspb.CommandReply_UNKNOWN
	}
	if !c.Now().Before(cmd.Deadline) {
		return peerspb.CommandReply_EXPIRED
	}
	if rec, ok := c.Table.Get(cmd.key()); ok && stateOf(rec.Value) > Accepted {
		return peerspb.CommandReply_TAKEN
	}
	if c.hand(cmd) {
		return peerspb.CommandReply_TAKEN
	}
	return peerspb.CommandReply_NOT_HERE
}

// hand sends a command to the hubs here, unless that was done already. It says whether one has it.
func (c *Commands) hand(cmd *Command) bool {
	key := cmd.key()
	c.mu.Lock()
	f := c.flight[key]
	if f == nil {
		f = &flight{cmd: cmd, known: make(chan struct{})}
		c.flight[key] = f
	}
	c.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sent {
		return true
	}
	if f.sent = c.send(cmd, f); !f.sent {
		c.mu.Lock()
		if c.flight[key] == f {
			delete(c.flight, key)
		}
		c.mu.Unlock()
	}
	return f.sent
}

// send is called with the flight locked: what the hub acknowledges is written behind what is written here.
func (c *Commands) send(cmd *Command, f *flight) bool {
	now := c.Now()
	if !now.Before(cmd.Deadline) {
		return false
	}
	m, err := cmd.message()
	if err != nil {
		c.Logger.Error("commands: a command cannot be written", "command", cmd.ID, "error", err)
		return false
	}
	if !c.Hubs.Hand(cmd.Home, m, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		c.behind(f, Delivered)
	}) {
		return false
	}
	if _, ok := c.Table.Get(cmd.key()); ok {
		f.know()
	} else {
		c.later(cmd.key(), c.Now().Add(knownWait))
	}
	c.behind(f, Sent)
	return true
}

// knownWait is how long steps wait for the command itself. A gateway that died on it will not write it any more.
const knownWait = 500 * time.Millisecond

// behind writes down a step, once the table has the command. The flight is locked.
func (c *Commands) behind(f *flight, s State) {
	select {
	case <-f.known:
		c.step(f.cmd, s, "", time.Time{})
	default:
		f.pending = append(f.pending, s)
	}
}

// know is called with the flight locked.
func (f *flight) know() {
	select {
	case <-f.known:
	default:
		close(f.known)
	}
}

// settle writes down what has waited for the table to have the command.
func (c *Commands) settle(key string) {
	c.mu.Lock()
	f := c.flight[key]
	c.mu.Unlock()
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.pending {
		c.step(f.cmd, s, "", time.Time{})
	}
	f.pending = nil
	f.know()
}

// step writes down that a command has come further, unless it has come as far already.
func (c *Commands) step(cmd *Command, s State, detail string, executed time.Time) {
	if rec, ok := c.Table.Get(cmd.key()); ok {
		stands, err := decode(rec.Value)
		if err != nil || stands.State.rank() >= s.rank() {
			return
		}
		cmd = stands // of two that were accepted under one id, the first
	}
	if key, raw := c.stepped(cmd, s, detail, executed); raw != nil && !c.Table.Offer(key, raw) {
		c.Logger.Warn("commands: a step is not written down: the log takes nothing", "command", cmd.ID, "state", s)
	}
}

func (c *Commands) stepped(cmd *Command, s State, detail string, executed time.Time) (key string, raw []byte) {
	next := *cmd
	next.State, next.Changed, next.Gateway = s, c.Now().UTC().Truncate(time.Microsecond), c.Gateway
	next.Detail, next.Executed = detail, executed
	raw, err := json.Marshal(&next)
	if err != nil {
		c.Logger.Error("commands: a step cannot be written", "command", cmd.ID, "error", err)
		return "", nil
	}
	return next.key(), raw
}

// Connected is told that a hub here has subscribed to a filter: what waits for it is sent, also what was sent before and
// has not ended, since it may not have come to it. A hub knows an id again.
func (c *Commands) Connected(home, filter string) {
	now := c.Now()
	for _, rec := range c.Table.Scan(home + "/") {
		if stateOf(rec.Value).Final() {
			continue
		}
		cmd, err := decode(rec.Value)
		if err != nil || !mqtt.Matches(filter, topic(cmd.Home, cmd.Device)) || !now.Before(cmd.Deadline) {
			continue
		}
		c.mu.Lock()
		delete(c.flight, rec.Key) // sent to a connection that is no more
		c.mu.Unlock()
		c.hand(cmd)
	}
}

// Report is told what a hub says of a command, on the topic …/commands/{id}/status. It returns when that is durable: then the
// hub may forget it. Of a command that is not known, or has ended, nothing is kept.
func (c *Commands) Report(ctx context.Context, home, device, id string, payload []byte) error {
	s, detail, at, err := parseReport(payload)
	if err != nil {
		return err
	}
	cmd := c.reported(ctx, keyOf(home, device, id))
	if cmd == nil || cmd.State.Final() {
		return nil
	}
	key, raw := c.stepped(cmd, s, detail, at)
	_, err = c.Table.Put(ctx, key, raw)
	return err
}

// reported finds the command that a hub reports of. A fast one does before the table has it.
func (c *Commands) reported(ctx context.Context, key string) *Command {
	c.mu.Lock()
	f := c.flight[key]
	c.mu.Unlock()
	if f != nil {
		select {
		case <-f.known:
		case <-ctx.Done():
		}
	}
	rec, ok := c.Table.Get(key)
	if !ok {
		if f != nil {
			return f.cmd
		}
		return nil
	}
	cmd, err := decode(rec.Value)
	if err != nil {
		return nil // said in the log when it came
	}
	return cmd
}

// Get gives a command.
func (c *Commands) Get(home, device, id string) (*Command, bool) {
	rec, ok := c.Table.Get(keyOf(home, device, id))
	if !ok {
		return nil, false
	}
	cmd, err := decode(rec.Value)
	return cmd, err == nil
}

// changed follows the table.
func (c *Commands) changed(old, rec table.Record) {
	before := State(0)
	if old.Value != nil {
		before = stateOf(old.Value)
	}
	if rec.Value == nil {
		return
	}
	cmd, err := decode(rec.Value)
	if err != nil {
		c.Logger.Error("commands: a record of the table cannot be read", "key", rec.Key, "error", err)
		return
	}
	c.mu.Lock()
	device := cmd.Home + "/" + cmd.Device
	switch {
	case before == 0 && !cmd.State.Final():
		c.active[device]++
	case before != 0 && !before.Final() && cmd.State.Final():
		if c.active[device]--; c.active[device] == 0 {
			delete(c.active, device)
		}
	}
	if before != 0 && !before.Final() {
		c.open[before]--
	}
	if !cmd.State.Final() {
		c.open[cmd.State]++
	}
	tell := c.followed[rec.Key]
	if cmd.State.Final() {
		delete(c.flight, rec.Key)
		delete(c.followed, rec.Key)
		c.schedule(rec.Key, cmd.Changed.Add(c.Keep))
	} else if before == 0 {
		c.schedule(rec.Key, cmd.Deadline)
	}
	if cmd.State == Accepted && cmd.Gateway != c.Gateway {
		// Whoever accepted it sends it. Should it have died, or not know yet that the hub is here, this one does.
		c.schedule(rec.Key, c.Now().Add(retryWait))
	}
	c.mu.Unlock()
	if before == 0 {
		c.settle(rec.Key)
	}
	if cmd.Gateway == c.Gateway {
		c.tally(cmd)
		if c.Audit != nil {
			c.Audit(cmd)
		}
	}
	for _, f := range tell {
		f(cmd)
	}
}

func (c *Commands) tally(cmd *Command) {
	switch cmd.State {
	case Sent:
		c.count.sent.Add(1)
	case Delivered:
		c.count.delivered.Add(1)
		c.count.untilDelivered.Observe(cmd.Changed.Sub(cmd.Created))
	case Executed:
		c.count.executed.Add(1)
		c.count.untilExecuted.Observe(cmd.Changed.Sub(cmd.Created))
	case Failed:
		c.count.failed.Add(1)
	case Expired:
		c.count.expired.Add(1)
	}
}

// othersWait is how much later than the gateway that wrote a command's last step the others see to what is due: as a rule
// they find it done.
const othersWait = 3 * time.Second

// due sees to a command whose time has come: to be sent by whoever has its hub, to expire, or to be forgotten.
func (c *Commands) due(key string, now time.Time) {
	rec, ok := c.Table.Get(key)
	if !ok {
		c.settle(key)
		return
	}
	cmd, err := decode(rec.Value)
	if err != nil {
		return
	}
	wait := time.Duration(0)
	if cmd.Gateway != c.Gateway {
		wait = othersWait
	}
	switch {
	case cmd.State.Final():
		if at := cmd.Changed.Add(c.Keep + wait); now.Before(at) {
			c.later(key, at)
		} else if !c.Table.Offer(key, nil) {
			c.later(key, now.Add(othersWait))
		}
		return
	case now.Before(cmd.Deadline):
		if cmd.State == Accepted {
			c.hand(cmd)
		}
		return
	case cmd.State > Accepted:
		wait += c.Grace // it may have been executed in time
	}
	if at := cmd.Deadline.Add(wait); now.Before(at) {
		c.later(key, at)
		return
	}
	c.step(cmd, Expired, "", time.Time{})
	c.later(key, now.Add(othersWait)) // until it stands
}

// timers are what is due, the soonest first.
type timers []timer

type timer struct {
	at  time.Time
	key string
}

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at.Before(t[j].at) }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }

// Push implements heap.Interface.
func (t *timers) Push(x any) { *t = append(*t, x.(timer)) }

// Pop implements heap.Interface.
func (t *timers) Pop() any {
	last := (*t)[len(*t)-1]
	*t = (*t)[:len(*t)-1]
	return last
}

// schedule is called with mu held.
func (c *Commands) schedule(key string, at time.Time) {
	heap.Push(&c.timers, timer{at, key})
	if c.timers[0].key == key {
		select {
		case c.timer <- struct{}{}:
		default:
		}
	}
}

func (c *Commands) later(key string, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.schedule(key, at)
}
