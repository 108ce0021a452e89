package commands

import (
	"context"

	"hearthline/ingest/mqtt"
)

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
