package ingest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"hearthline/flow"
	"hearthline/ingest/identity"
	"hearthline/ingest/payload"
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

// latest is what it said last, to whomever: to one who has just asked it is now, without asking the system again.
func (c *clock) latest() flow.Micros { return flow.Micros(c.last.Load()) }

// restore sets the clock to be no earlier than the file says, so that rows of this start are not stamped earlier than
// those of the start before it, whose watermarks readers have seen. No file is a first start. The file is written
// every reloadEvery; what a crash leaves unwritten can only make rows late, never lost.
func (c *clock) restore(file string) error {
	if file == "" {
		return nil
	}
	data, err := os.ReadFile(file) // #nosec G304 -- the operator names the file
	if errors.Is(err, fs.ErrNotExist) {
		return c.save(file)
	} else if err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	saved, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return fmt.Errorf("clock: %s does not hold microseconds since 1970; remove it if the system's clock was never set back: %w", file, err)
	}
	if now := flow.MicrosOf(c.system()); flow.Micros(saved) > now.Add(payload.FutureMax) {
		return fmt.Errorf("clock: the system's clock says %s, %s says %s: set the clock right, or remove the file if it is the wrong one",
			now.Time().Format(time.RFC3339), file, flow.Micros(saved).Time().Format(time.RFC3339))
	}
	c.last.Store(saved)
	return nil
}

func (c *clock) save(file string) error {
	if file == "" {
		return nil
	}
	if err := identity.WriteFile(file, strconv.AppendInt(nil, int64(c.now()), 10), 0o600); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	return nil
}
