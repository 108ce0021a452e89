package commands

import (
	"context"
	"encoding/json"
	"time"

	"hearthline/ingest/peers/peerspb"
)

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
