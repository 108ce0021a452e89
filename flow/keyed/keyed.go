// Package keyed keeps state for a stage: typed values, one set of them for each key, where a key is what some columns of a row hold.
//
// A stage in Go declares its state as a struct and keeps a [Table] of it:
//
//	type Seen struct {
//		Count int64    `state:"count"`
//		Last  *float64 `state:"last"` // a pointer may be nil
//	}
//
//	seen, err := keyed.New(Seen{}, keyed.Settings{Key: []string{"home", "device"}, TTL: 24 * time.Hour})
//
// and in Process:
//
//	if err := seen.Begin(rec); err != nil {
//		return nil, err // a column of the key is missing
//	}
//	defer seen.End()
//	for row := range int(rec.NumRows()) {
//		s, _ := seen.Get(row) // Seen{}, the initial value, for a key that is new
//		s.Count++
//		if err := seen.Put(row, s); err != nil {
//			bad.Add(row, err.Error()) // there are more keys than Limit
//		}
//	}
//
// Snapshot, Restore and Advance of the stage are those of the table. [Rows] does all this for a function on one row.
//
// # Time
//
// With a TTL, a key is forgotten when it has had no row for that long, by the rows' received times: a row that was received
// later than that finds the initial value, whether or not time was told in between by Advance. Advance only makes room, once
// the watermark has passed. No clock is looked at, so a replay forgets what was forgotten.
//
// # Snapshots
//
// The same state gives the same bytes, in whatever order its keys came. A snapshot carries the names and types of the fields.
// A field that was declared since has its initial value; one that is gone, or has another type, refuses the snapshot by name, and so
// does another key.
package keyed

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// Settings say what a key is, and what bounds the keys.
type Settings struct {
	Key   []string      // columns, by name: texts, whole numbers, true or false, instants; a null is a value like others
	TTL   time.Duration // in received time, without a row of the key; 0 is for ever
	Limit int           // keys in a partition; 0 is LimitDefault
}

const (
	// LimitDefault is how many keys a partition keeps where nothing is said: some 100 MB with a few fields.
	LimitDefault = 1_000_000
	// limitMost is what slots can number.
	limitMost = 1 << 30
	// textMax bounds a text or the bytes of one field, or of a column of the key.
	textMax = 64 << 10
	// columnsMax is how many columns a key may have.
	columnsMax = 4
)

func (s *Settings) check() error {
	switch {
	case len(s.Key) == 0:
		return errors.New("state needs a key: the names of columns")
	case len(s.Key) > columnsMax:
		return fmt.Errorf("the key of state has %d columns; at most %d", len(s.Key), columnsMax)
	case s.TTL < 0:
		return fmt.Errorf("the ttl of state is %v; it must not be less than 0", s.TTL)
	case s.Limit < 0 || s.Limit > limitMost:
		return fmt.Errorf("the limit of state is %d keys; want 1 to %d", s.Limit, limitMost)
	}
	for i, name := range s.Key {
		if slices.Contains(s.Key[:i], name) || name == "" {
			return fmt.Errorf("the key of state names %q twice, or not at all", name)
		}
	}
	if s.Limit == 0 {
		s.Limit = LimitDefault
	}
	return nil
}

// Kind is the type of a field, or of a column of the key.
type Kind string

// The kinds, by the names that errors and snapshots give them.
const (
	Text    Kind = "text"
	Int     Kind = "int64"
	Float   Kind = "float64"
	Bool    Kind = "bool"
	Instant Kind = "instant"
	Bytes   Kind = "bytes"
)

// Field is one value of a state.
type Field struct {
	Name     string
	Kind     Kind
	Nullable bool
}

func (f Field) String() string {
	if f.Nullable {
		return string(f.Kind) + " or null"
	}
	return string(f.Kind)
}

// Type is the Arrow type of a column of the field.
func (k Kind) Type() arrow.DataType {
	switch k {
	case Text:
		return arrow.BinaryTypes.String
	case Int:
		return arrow.PrimitiveTypes.Int64
	case Float:
		return arrow.PrimitiveTypes.Float64
	case Bool:
		return arrow.FixedWidthTypes.Boolean
	case Instant:
		return flow.InstantType
	case Bytes:
		return arrow.BinaryTypes.Binary
	}
	return nil
}

// ErrFull is why a key beyond the limit is not kept. It is bad data: the row goes to the dead letters.
var ErrFull = fmt.Errorf("%w: there is no room for another key", flow.ErrBad)

func (s *Settings) full() error {
	return fmt.Errorf("%w: state is kept of %d keys (%s) in a partition; raise the limit, or set a ttl", ErrFull, s.Limit, strings.Join(s.Key, ", "))
}
