package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// rareAfter is after how many clean runs one at least must have had rows of every stream: of some not every run has any.
const rareAfter = 50

// tally counts seeds. One that could not be run is neither clean nor failed.
type tally struct {
	ran             map[string]int // by broker
	over            map[string]int // rows of each stream that were compared, over all runs
	failed, skipped []uint64
	clean, longest  int // of the row that goes on, and of the longest
}

// count takes a seed in. o is nil when it was not run to its end: ok says then whether it was left out.
func (a *tally) count(seed uint64, kind string, ok bool, o *outcome) {
	if ok && o == nil {
		a.skipped = append(a.skipped, seed)
		return
	}
	a.ran[kind]++
	if !ok {
		a.clean, a.failed = 0, append(a.failed, seed)
		return
	}
	a.clean++
	a.longest = max(a.longest, a.clean)
	for stream, n := range o.compared {
		a.over[stream] += n
	}
}

func (a *tally) runs() (n int) {
	for _, ran := range a.ran {
		n += ran
	}
	return n
}

// empty are the streams of which no run had a row, once there were enough runs.
func (a *tally) empty() (streams []string) {
	if a.runs()-len(a.failed) < rareAfter {
		return nil
	}
	for _, stream := range slices.Sorted(maps.Keys(a.over)) {
		if a.over[stream] == 0 && !strings.HasSuffix(stream, ".dead") { // which of the stages have any depends on the homes
			streams = append(streams, stream)
		}
	}
	return streams
}

func (a *tally) String() string {
	var brokers, streams []string
	for _, kind := range slices.Sorted(maps.Keys(a.ran)) {
		brokers = append(brokers, fmt.Sprintf("%d on %s", a.ran[kind], kind))
	}
	for _, stream := range slices.Sorted(maps.Keys(a.over)) {
		streams = append(streams, fmt.Sprintf("%s %d", stream, a.over[stream]))
	}
	return fmt.Sprintf("%d run (%s), %d not run, %d failed %v, longest row of clean ones %d; rows compared in clean ones: %s",
		a.runs(), strings.Join(brokers, ", "), len(a.skipped), len(a.failed), a.failed, a.longest, strings.Join(streams, ", "))
}

// A seed that was not run is not among the clean ones, and one that broke off is among the failed.
func TestTally(t *testing.T) {
	a := &tally{ran: map[string]int{}, over: map[string]int{}}
	good := &outcome{compared: map[string]int{"features": 3, "alerts": 0}}
	a.count(1, "embedded", true, good)
	a.count(2, "kafka1", true, nil)
	a.count(3, "embedded", true, good)
	a.count(4, "kafka3", false, nil)
	a.count(5, "kafka1", false, &outcome{})
	a.count(6, "embedded", true, good)
	const want = "5 run (3 on embedded, 1 on kafka1, 1 on kafka3), 1 not run, 2 failed [4 5], longest row of clean ones 2; " +
		"rows compared in clean ones: alerts 0, features 9"
	if got := a.String(); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if got := a.empty(); len(got) != 0 {
		t.Errorf("after few runs nothing is missed: %v", got)
	}
	for range rareAfter {
		a.count(7, "embedded", true, good)
	}
	if got := a.empty(); !slices.Equal(got, []string{"alerts"}) {
		t.Errorf("%v; want alerts", got)
	}
}
