package ingest

import (
	"sync/atomic"
	"time"

	"hearthline/flow"
)

// clock is the gateway's arrival clock: the system's, except that it never goes back. Watermarks are promises, and a
// system clock that is set back would break them; this one then stands still until the system's has caught up.
type clock struct {
	system func() time.Time
	last   atomic.Int64
}

func (c *clock) now() flow.Micros {
	now := c.system().UnixMicro()
	for {
		last := c.last.Load()
		if now <= last {
			return flow.Micros(last)
		}
		if c.last.CompareAndSwap(last, now) {
			return flow.Micros(now)
		}
	}
}
