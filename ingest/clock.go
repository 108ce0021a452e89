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

// Readers drop batches whose positions do not rise, and positions start from the clock at boot: a system clock that is
// set back between two runs would make a new gateway's batches look like old ones. The clock file is the memory
// that forbids it. It is written every reloadEvery; positionSlack covers what a crash leaves unwritten.
const positionSlack = 10 * time.Second

// restore sets the clock to be no earlier than the file says, and gives the first position. No file is a first start.
func (c *clock) restore(file string) (position int64, err error) {
	if file == "" {
		return int64(c.now()), nil
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return int64(c.now()), c.save(file)
	} else if err != nil {
		return 0, fmt.Errorf("clock: %w", err)
	}
	saved, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("clock: %s does not hold microseconds since 1970; remove it if the system's clock was never set back: %w", file, err)
	}
	if now := flow.MicrosOf(c.system()); flow.Micros(saved) > now.Add(futureMax) {
		return 0, fmt.Errorf("clock: the system's clock says %s, %s says %s: set the clock right, or remove the file if it is the wrong one",
			now.Time().Format(time.RFC3339), file, flow.Micros(saved).Time().Format(time.RFC3339))
	}
	c.last.Store(saved)
	return max(int64(c.now()), saved+int64(positionSlack/time.Microsecond)), nil
}

func (c *clock) save(file string) error {
	if file == "" {
		return nil
	}
	if err := writeFile(file, strconv.AppendInt(nil, int64(c.now()), 10), 0o600); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	return nil
}
