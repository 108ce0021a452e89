package commands

import (
	"hearthline/ingest/table"
)

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
