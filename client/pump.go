package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc/pool"
)

// Bounds of the time between two attempts.
const (
	backoffFirst = time.Second
	backoffMost  = 5 * time.Minute
)

// fullJitter is a random time up to a limit that doubles with every failure.
func fullJitter(failures int) time.Duration {
	limit := backoffMost
	if failures < 9 {
		limit = min(backoffMost, backoffFirst<<failures)
	}
	return rand.N(limit) // #nosec G404 -- to spread clients in time
}

// message is what is sent at once: rows of one device, or of several over HTTP, or what a command came to.
type message struct {
	entries []*entry
	rows    int
	key     string // the same whenever it is sent again
}

// finishing is how long what is under way may take after Run's ctx has ended.
const finishing = 5 * time.Second

// pump sends what the outbox holds until the connection or ctx ends.
func (c *Client) pump(ctx context.Context, s sender) (worked bool, err error) {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(finishing, stop) })()
	_, byDevice := s.(*mqttSender)
	for ctx.Err() == nil {
		some := c.box.take(c.InFlight*c.BatchRows, c.BatchRows)
		if len(some) == 0 {
			select {
			case <-c.box.more():
				continue
			case <-s.gone():
				return worked, lost(s)
			case <-ctx.Done():
				return worked, nil
			}
		}
		var acknowledged atomic.Int64
		p := pool.New().WithErrors().WithMaxGoroutines(c.InFlight)
		for _, m := range gather(some, byDevice, c.BatchRows) {
			p.Go(func() error {
				err := c.deliver(work, s, m)
				if err == nil {
					acknowledged.Add(1)
				}
				return err
			})
		}
		err := p.Wait()
		worked = worked || acknowledged.Load() > 0
		if err != nil {
			return worked, err
		}
	}
	return worked, nil
}

func lost(s sender) error {
	if w, ok := s.(interface{ why() error }); ok {
		if err := w.why(); err != nil {
			return err
		}
	}
	return errLost
}

// gather makes messages of entries, in order: one for each device, or one for all. They are sent at the same time, so of what must not
// overtake it takes the first, and leaves the rest for the next time.
func gather(some []*entry, byDevice bool, rowsMax int) (out []*message) {
	at := map[[2]string]*message{}
	shadows := map[[2]string]bool{}
	for _, e := range some {
		if inOrder(e) {
			if shadows[[2]string{e.Home, e.Device}] {
				continue
			}
			shadows[[2]string{e.Home, e.Device}] = true
		}
		where := [2]string{e.Home, e.Device}
		if !byDevice {
			where = [2]string{}
		}
		m := at[where]
		if m == nil || e.Topic != "" || m.rows+len(e.Rows) > rowsMax {
			m = &message{}
			if e.Topic == "" {
				at[where] = m
			}
			out = append(out, m)
		}
		m.entries = append(m.entries, e)
		m.rows += len(e.Rows)
	}
	return out
}

// Of a message that the other side takes no more of now, so many attempts are made on one connection.
const attemptsMax = 8

// deliver brings a message to its end: acknowledged, refused for good, or the connection is to be given up.
func (c *Client) deliver(ctx context.Context, s sender, m *message) error {
	for failures := 0; ; failures++ {
		refused, err := s.send(ctx, m)
		if err == nil {
			if refused != nil {
				c.tellRefused(*refused)
			}
			return c.box.acknowledge(m.entries)
		}
		var later *retryLater
		if !errors.As(err, &later) || failures == attemptsMax {
			return err
		}
		pause(ctx, max(c.backoff(failures), later.after))
		if ctx.Err() != nil {
			return err
		}
	}
}

func (c *Client) tellRefused(r Refusal) {
	if c.Refused != nil {
		c.Refused(r)
		return
	}
	c.Logger.Error("hearthline client: refused for good", "readings", r.Readings, "home", r.Home, "device", r.Device, "reason", r.Reason)
}
