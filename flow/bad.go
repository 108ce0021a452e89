package flow

import (
	"errors"
	"fmt"
	"slices"
	"sort"
)

// ErrBad marks data that no retry mends. A stage that returns an error which Is ErrBad has its rows set aside
// in the stage's dead letters, with the reason, and goes on. Every other error is the world's fault (a
// network, a disk): the runtime retries it with backoff, then ends the process so that it is started afresh.
var ErrBad = errors.New("bad data")

// Badf says why a whole batch is bad.
func Badf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrBad, fmt.Sprintf(format, args...))
}

// BadRows are the rows of the input that a stage could not use, or a sink not store, with the reason for each. It is returned
// (by Err) as an error. What a stage made of the good rows beside it counts; so do the rows that a sink has stored.
type BadRows struct {
	Rows    []int    // indices into the input, ascending (a sink's may come in any order)
	Reasons []string // one a row
}

// Add notes that row is bad. A row is added once.
func (b *BadRows) Add(row int, reason string) {
	b.Rows = append(b.Rows, row)
	b.Reasons = append(b.Reasons, reason)
}

// AddAll notes that the rows [first, first+n) are bad.
func (b *BadRows) AddAll(first, n int, reason string) {
	for row := first; row < first+n; row++ {
		b.Add(row, reason)
	}
}

// Sort puts rows that were not added in their order into it.
func (b *BadRows) Sort() { sort.Stable((*byRow)(b)) }

// byRow orders BadRows.
type byRow BadRows

func (b *byRow) Len() int           { return len(b.Rows) }
func (b *byRow) Less(i, j int) bool { return b.Rows[i] < b.Rows[j] }
func (b *byRow) Swap(i, j int) {
	b.Rows[i], b.Rows[j] = b.Rows[j], b.Rows[i]
	b.Reasons[i], b.Reasons[j] = b.Reasons[j], b.Reasons[i]
}

// Within gives, of rows in order, those of the rows [first, first+n), counted from first.
func (b *BadRows) Within(first, n int) BadRows {
	from, _ := slices.BinarySearch(b.Rows, first)
	to, _ := slices.BinarySearch(b.Rows, first+n)
	some := BadRows{Reasons: b.Reasons[from:to]}
	for _, row := range b.Rows[from:to] {
		some.Rows = append(some.Rows, row-first)
	}
	return some
}

// Err is b as an error, nil when no row is bad.
func (b *BadRows) Err() error {
	if len(b.Rows) == 0 {
		return nil
	}
	return b
}

func (b *BadRows) Error() string {
	return fmt.Sprintf("%v: %d rows, the first (row %d): %s", ErrBad, len(b.Rows), b.Rows[0], b.Reasons[0])
}

// Is makes errors.Is(b, ErrBad) true.
func (b *BadRows) Is(target error) bool { return target == ErrBad }
