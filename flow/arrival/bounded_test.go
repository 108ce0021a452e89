package arrival

import (
	"context"
	"slices"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// timesOf notes the times of what it is given.
type timesOf struct{ seen *[]arrow.Timestamp }

func (s timesOf) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	times, err := flow.Instants(in, flow.ColTime)
	*s.seen = append(*s.seen, times...)
	return nil, err
}

// Where more is held than may be, the rows that were received first go on, and no more of them than must.
func TestHeldRowsAreBounded(t *testing.T) {
	var seen []arrow.Timestamp
	s := New(timesOf{&seen})
	e := flow.NewEventBuilder()
	for i := range 100 {
		at := flow.Micros(1000 - i) // the last was received first
		e.Append(&flow.Event{Time: at, Received: at, Home: "h", Device: "d", Metric: "m", Value: 1, HasValue: true})
	}
	rec, _ := e.Record()
	defer rec.Release()
	if _, err := s.Process(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	s.max = s.bytes * 70 / 100
	if _, err := s.Advance(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 30 || seen[0] != 901 || !slices.IsSorted(seen) || s.Counters()["arrival_rows_hurried"] != 30 || s.Counters()["arrival_rows"] != 70 {
		t.Errorf("%d rows went on, from %v; %v", len(seen), seen, s.Counters())
	}
	if _, err := s.Advance(t.Context(), flow.EndOfTime); err != nil || len(seen) != 100 || !slices.IsSorted(seen) || s.bytes != 0 {
		t.Errorf("%d rows in the end, %d bytes held (%v)", len(seen), s.bytes, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
