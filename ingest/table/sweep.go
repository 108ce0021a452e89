package table

import (
	"context"
	"time"
)

// Sweep deletes the records that are dead, every so often, until ctx ends. Of the processes that share the table one is to do it: mine says
// whose turn it is. What cannot be deleted now is tried again.
func (t *Table) Sweep(ctx context.Context, every time.Duration, mine func() bool, dead func(Record) bool) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if mine() {
			if err := t.SweepOnce(ctx, dead); err != nil && ctx.Err() == nil {
				t.Logger.Warn("table: what has expired could not be deleted; trying again", "table", t.Name, "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// SweepOnce deletes the records that are dead now.
func (t *Table) SweepOnce(ctx context.Context, dead func(Record) bool) error {
	for _, rec := range t.Scan("") {
		if !dead(rec) {
			continue
		}
		if _, err := t.Put(ctx, rec.Key, nil); err != nil {
			return err
		}
	}
	return nil
}
