package run

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// turnstile counts the rows of windows of 100 ms, for each home, and gives a window's count, times Sign, when time has passed it.
type turnstile struct {
	Sign int64 `yaml:"sign"`

	open map[string]int64 // window/home → rows
}

const turnstileWindow = 100_000 // µs

func (s *turnstile) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	events, err := flow.EventsOf(in)
	if err != nil {
		return nil, err
	}
	if s.open == nil {
		s.open = map[string]int64{}
	}
	for i := range int(in.NumRows()) {
		s.open[fmt.Sprintf("%020d %s", int64(events.Received[i])/turnstileWindow, events.Home.Value(i))]++
	}
	return s.give(nil)
}

func (s *turnstile) Advance(_ context.Context, w flow.Micros) ([]flow.Output, error) {
	var closed []string
	for key := range s.open {
		if key < fmt.Sprintf("%020d", int64(w)/turnstileWindow) {
			closed = append(closed, key)
		}
	}
	return s.give(closed)
}

func (s *turnstile) give(closed []string) ([]flow.Output, error) {
	b := array.NewRecordBuilder(memory.DefaultAllocator, tallies)
	defer b.Release()
	for _, key := range slices.Sorted(slices.Values(closed)) {
		var window int64
		var home string
		if _, err := fmt.Sscanf(key, "%d %s", &window, &home); err != nil {
			return nil, err
		}
		b.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(window * turnstileWindow))
		if err := b.Field(1).(*array.BinaryDictionaryBuilder).AppendString(fmt.Sprintf("%s/%d", home, window)); err != nil {
			return nil, err
		}
		b.Field(2).(*array.Int64Builder).Append(s.Sign * s.open[key])
		delete(s.open, key)
	}
	return []flow.Output{{To: "tallies", Record: b.NewRecord()}}, nil
}

func (s *turnstile) Snapshot(w io.Writer) error { return json.NewEncoder(w).Encode(s.open) }
func (s *turnstile) Restore(r io.Reader) error  { return json.NewDecoder(r).Decode(&s.open) }

// Windows that were open when a shadow began, and when it took over, are whole: each window of each home comes once, and all
// of them together hold every row.
func TestWindowsOfAPromotedShadow(t *testing.T) {
	s := newTrials(t)
	stop := s.load()
	first := s.process(trialPlan(t, s.held, "    use: turnstile"), "tally", "keep")
	s.more(40)
	first.kill()
	stage := s.process(trialPlan(t, s.held, "    use: turnstile\n    shadow: {settings: {sign: -1}}"), "tally", "tally-shadow", "keep")
	s.more(40)
	if err := stage.Promote(s.ctx, "tally", false, func(string) {}); err != nil {
		t.Fatal(err)
	}
	s.more(40)
	stage.kill()
	s.process(trialPlan(t, s.held, "    use: turnstile\n    settings: {sign: -1}"), "tally", "keep")
	s.more(40)
	stop()
	rows := int64(0)
	for _, n := range s.sent {
		rows += n
	}
	// All but what is open at the end: one window of six rows a batch, twenty batches, of two partitions, and one that has begun.
	s.until("the last windows", func() bool { return sumOf(s.held.of("tallies")) >= rows-2*2*6*20 })
	second := false
	for window, got := range s.held.of("tallies") {
		if len(got) != 1 {
			t.Errorf("%s came %d times: %v", window, len(got), got)
		}
		second = second || got[0] < 0
	}
	if got := sumOf(s.held.of("tallies")); got > rows || !second {
		t.Errorf("%d rows in windows of %d; of the second version: %v", got, rows, second)
	}
	s.wholeWindows()
}

func sumOf(windows map[string][]int64) (sum int64) {
	for _, all := range windows {
		for _, n := range all {
			sum += max(n, -n)
		}
	}
	return sum
}

// wholeWindows checks that every window but the first and the last of a home holds the rows that were written in 100 ms.
func (s *trials) wholeWindows() {
	s.t.Helper()
	last := map[string]int64{}
	counts := map[string]map[int64]int64{}
	for key, got := range s.held.of("tallies") {
		var home string
		var window int64
		for i := range key {
			if key[i] == '/' {
				home = key[:i]
				if _, err := fmt.Sscan(key[i+1:], &window); err != nil {
					s.t.Fatal(err)
				}
			}
		}
		if counts[home] == nil {
			counts[home] = map[int64]int64{}
		}
		counts[home][window] = max(got[0], -got[0])
		last[home] = max(last[home], window)
	}
	const begin = 1_700_000_000_000_000 / turnstileWindow
	for home, windows := range counts {
		for w := int64(begin) + 1; w < last[home]; w++ {
			if windows[w] != 30 { // twenty batches of six rows, over four homes
				s.t.Errorf("%s: window %d holds %d rows; want 30", home, w-begin, windows[w])
			}
		}
	}
}
