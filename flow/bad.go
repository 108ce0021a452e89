package flow

import (
	"errors"
	"fmt"
)

// ErrBad marks data that no retry mends. A stage that returns an error which Is ErrBad has its rows set aside
// in the stage's dead letters, with the reason, and goes on. Every other error is the world's fault (a
// network, a disk): the runtime retries it with backoff, then ends the process so that it is started afresh.
var ErrBad = errors.New("bad data")

// Badf says why a whole batch is bad.
func Badf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrBad, fmt.Sprintf(format, args...))
}

// BadRows are the rows of the input that a stage could not use, with the reason for each. A stage returns it
// (by Err) as its error, beside the outputs made of the good rows: both count.
type BadRows struct {
	Rows    []int    // indices into the input, ascending
	Reasons []string // one a row
}

// Add notes that row is bad. A row is added once.
func (b *BadRows) Add(row int, reason string) {
	b.Rows = append(b.Rows, row)
	b.Reasons = append(b.Reasons, reason)
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
