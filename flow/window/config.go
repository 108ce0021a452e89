// Package window gives a stage, in whatever language, the rows of whole windows of event time: `window:` of a stage in
// pipeline.yaml. It stands around the author's stage, gathers rows by the columns `by`, and hands the stage all rows of the
// windows that closed, with the columns window_start and window_end.
//
// # When a window closes
//
// By the rule of docs/decisions/0003, each key goes by its own time:
//
//   - a window closes when its key has a row whose event time is Lateness or more after the window's end;
//   - the windows of a key that fell silent close when nothing of it was received for Idle, and Idle has passed since the
//     window's end, both by the arrival clock: the received time of the key's next row, or the watermark.
//
// It is decided row by row, from the rows' own time and received: neither the cut of the batches nor when heartbeats come has
// a say in what a window holds. A row that comes after a window it belongs to was closed is late: it goes to the output
// "late" where pipeline.yaml maps it, else to the dead letters; windows it belongs to that are open have it too.
//
// # What the stage is given
//
// Records of whole windows, in the order of their ends, their starts and their keys; within a window rows are in the order of
// their times, and of their arrival where these are equal. A call has at most CallRows rows, or one window. What the
// stage makes of a window must not depend on which other windows share the call.
package window

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// Limits. Rows beyond them are set aside as dead letters, with the reason.
const (
	// CallRows is how many rows a call of the stage is given, unless one window has more.
	CallRows = 16_384
	// RowsMax and BytesMax bound what the open windows of one key hold.
	RowsMax  = 65_536
	BytesMax = 16 << 20
	// StateBytesMax bounds what the open windows of all keys of a partition hold.
	StateBytesMax = 512 << 20
	// KeysMax is how many keys are remembered in a partition; beyond it, the one that has been silent longest is
	// forgotten, its windows closed.
	KeysMax = 500_000
	// Forget is how long a key may be silent, in received time, before it is forgotten, its windows closed.
	Forget = 7 * 24 * time.Hour

	overlapMax = 1440 // windows that a row may be in
	spanMax    = 7 * 24 * time.Hour
)

// What the wrapper adds to the rows, and the output of late ones.
const (
	ColStart   = "window_start" // instant, part of the window
	ColEnd     = "window_end"   // instant, not part of the window
	OutputLate = "late"
)

// Config is `window:` of a stage. Either Size is set, or Gap.
type Config struct {
	// Size is how long a window is.
	Size time.Duration `yaml:"size"`
	// Every is how often a window starts, counted from 1970-01-01T00:00:00Z: Size is a multiple of it. 0 is Size: tumbling windows.
	Every time.Duration `yaml:"every"`
	// Gap ends a session: a window of rows between which less time passes.
	Gap time.Duration `yaml:"gap"`
	// Max is how long a session may be; then the next one begins. 0 is an hour.
	Max time.Duration `yaml:"max"`
	// By are the columns whose values have windows of their own.
	By []string `yaml:"by"`
	// Lateness is how far a key must have come, in event time, beyond a window's end before it closes; 0 is 30s.
	Lateness *time.Duration `yaml:"lateness"`
	// Idle is how long a key must have been silent, in received time, before its windows close without it; 0 is 2m.
	Idle time.Duration `yaml:"idle"`
}

// Validate checks the settings, without defaults.
func (c *Config) Validate() error {
	d := c.withDefaults()
	var errs []error
	no := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch {
	case c.Size == 0 && c.Gap == 0:
		no("give size (windows of a fixed length) or gap (sessions)")
	case c.Size != 0 && c.Gap != 0:
		no("gap: give size or gap, not both")
	case c.Gap != 0 && c.Every != 0:
		no("every: a session has no every")
	case c.Size != 0 && c.Max != 0:
		no("max: only a session has a max")
	case c.Size != 0:
		d.validateFixed(no)
	default:
		d.validateSession(no)
	}
	if len(c.By) == 0 {
		no("by: name the columns whose values have windows of their own, such as [home, device]")
	}
	for i, name := range c.By {
		if name == "" || slices.Contains(c.By[:i], name) {
			no("by: %q is empty or stands there twice", name)
		}
	}
	if *d.Lateness < 0 || *d.Lateness > spanMax {
		no("lateness is %v; want 0s to %v", *d.Lateness, spanMax)
	}
	if d.Idle < time.Millisecond || d.Idle > spanMax {
		no("idle is %v; want 1ms to %v", d.Idle, spanMax)
	}
	return errors.Join(errs...)
}

func (c *Config) validateFixed(no func(string, ...any)) {
	switch {
	case c.Size < time.Millisecond || c.Size > spanMax || c.Size%time.Millisecond != 0:
		no("size is %v; want whole milliseconds, 1ms to %v", c.Size, spanMax)
	case c.Every < time.Millisecond || c.Every%time.Millisecond != 0:
		no("every is %v; want whole milliseconds", c.Every)
	case c.Size%c.Every != 0:
		no("every is %v; size must be a multiple of it", c.Every)
	case c.Size/c.Every > overlapMax:
		no("every is %v: a row would be in %d windows; at most %d", c.Every, c.Size/c.Every, overlapMax)
	}
}

func (c *Config) validateSession(no func(string, ...any)) {
	switch {
	case c.Gap < time.Millisecond || c.Gap > spanMax:
		no("gap is %v; want 1ms to %v", c.Gap, spanMax)
	case c.Max < c.Gap || c.Max > spanMax:
		no("max is %v; want the gap to %v", c.Max, spanMax)
	}
}

// withDefaults fills in what is not said.
func (c *Config) withDefaults() *Config {
	d := *c
	if d.Every == 0 {
		d.Every = d.Size
	}
	if d.Gap != 0 && d.Max == 0 {
		d.Max = max(time.Hour, d.Gap)
	}
	if d.Lateness == nil {
		lateness := 30 * time.Second
		d.Lateness = &lateness
	}
	if d.Idle == 0 {
		d.Idle = 2 * time.Minute
	}
	return &d
}

// String is the kind of window, as a snapshot notes it: state of another kind is of no use.
func (c *Config) String() string {
	d := c.withDefaults()
	if d.Gap != 0 {
		return fmt.Sprintf("gap %v, max %v, by %v", d.Gap, d.Max, d.By)
	}
	return fmt.Sprintf("size %v, every %v, by %v", d.Size, d.Every, d.By)
}

// Schema is what the stage sees of rows of a schema.
func Schema(of *arrow.Schema) *arrow.Schema {
	return arrow.NewSchema(append(slices.Clone(of.Fields()),
		arrow.Field{Name: ColStart, Type: flow.InstantType}, arrow.Field{Name: ColEnd, Type: flow.InstantType}), nil)
}
