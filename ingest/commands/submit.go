package commands

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"hearthline/ingest/table"
)

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
