package simulator

import (
	"bytes"
	"compress/gzip"
	"encoding/csv"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// recording is the readings of a recorded room in memory.
type recording struct {
	values [][]float32     // by row and column
	at     []time.Duration // since the first row
	calm   []time.Duration // the same with silences cut to silenceMax: what playing follows
}

// lapGap stands between the last row and the first one of the next lap: a recording's usual cadence.
const lapGap = 30 * time.Second

// silenceMax is how much of a silence in the recording is waited for in playing (in recorded time). Event times keep the
// whole gap; nobody watches a room for the 15 days in which nothing was recorded.
const silenceMax = time.Hour

// reader gives a recording, unpacked once a process: times holds the columns that make a row's time, and the values follow.
func reader(name string, packed *[]byte, times int, layout string) func() (*recording, error) {
	return sync.OnceValues(func() (*recording, error) {
		z, err := gzip.NewReader(bytes.NewReader(*packed))
		if err != nil {
			return nil, fmt.Errorf("unpack the recording %s: %w", name, err)
		}
		lines, err := csv.NewReader(z).ReadAll()
		if err != nil {
			return nil, fmt.Errorf("read the recording %s: %w", name, err)
		}
		r, err := parseRecording(lines, times, layout)
		if err != nil {
			return nil, fmt.Errorf("recording %s, %w", name, err)
		}
		return r, nil
	})
}

func parseRecording(lines [][]string, times int, layout string) (*recording, error) {
	r := &recording{}
	var first time.Time
	for i, line := range lines[1:] {
		when := line[0]
		for _, more := range line[1:times] {
			when += " " + more
		}
		t, err := time.Parse(layout, when)
		if err != nil {
			return nil, fmt.Errorf("row %d: %w", i+1, err)
		}
		if i == 0 {
			first = t
		}
		v := make([]float32, len(line)-times)
		for c := range v {
			x, err := strconv.ParseFloat(line[times+c], 32)
			if err != nil {
				return nil, fmt.Errorf("row %d, column %s: %w", i+1, lines[0][times+c], err)
			}
			v[c] = float32(x)
		}
		at, calm := t.Sub(first), time.Duration(0)
		if i > 0 {
			gap := at - r.at[i-1]
			if gap <= 0 {
				return nil, fmt.Errorf("row %d: time does not rise", i+1)
			}
			calm = r.calm[i-1] + min(gap, silenceMax)
		}
		r.values, r.at, r.calm = append(r.values, v), append(r.at, at), append(r.calm, calm)
	}
	return r, nil
}

// length is the recorded time of one lap, without the gap to the next.
func (r *recording) length() time.Duration { return r.at[len(r.at)-1] }

// event is the recorded time of a round (counted over all laps), since the first row of the first lap.
func (r *recording) event(round int64) time.Duration {
	n := int64(len(r.at))
	return time.Duration(round/n)*(r.length()+lapGap) + r.at[round%n]
}

// played is the same with silences cut short.
func (r *recording) played(round int64) time.Duration {
	n := int64(len(r.at))
	return time.Duration(round/n)*(r.calm[n-1]+lapGap) + r.calm[round%n]
}
