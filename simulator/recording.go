package simulator

import (
	"bytes"
	"compress/gzip"
	_ "embed" // for the recording
	"encoding/csv"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// RecordedHome is the name of the home that plays the recording. recordings/README.md says where it is from.
const RecordedHome = "recorded-room"

//go:embed recordings/room_occupancy.csv.gz
var roomOccupancy []byte

// recording is the recorded room in memory: rows × 16 values.
type recording struct {
	values [][16]float32
	at     []time.Duration // since the first row
	calm   []time.Duration // the same with silences cut to silenceMax: what playing follows
}

// lapGap stands between the last row and the first one of the next lap: the recording's usual cadence.
const lapGap = 30 * time.Second

// silenceMax is how much of a silence in the recording is waited for in playing (in recorded time). Event times keep the
// whole gap; nobody watches a room for the 15 days in which nothing was recorded.
const silenceMax = time.Hour

// roomDevices are the recorded room's devices, in the order of the recording's columns' first use.
var roomDevices = func() []Device {
	out := make([]Device, 0, 8)
	add := func(name, kind, model string) {
		out = append(out, Device{Home: RecordedHome, Device: name, Room: "laboratory", Kind: kind, Model: model, Zone: "indoor"})
	}
	for _, n := range []string{"S1", "S2", "S3", "S4"} {
		add(n, "climate", "temperature-light-sound node")
	}
	add("S5", "air", "CO2 node")
	add("S6", "motion", "PIR node")
	add("S7", "motion", "PIR node")
	add("room", "label", "counted by hand")
	return out
}()

// roomReadings says which metrics a device has: metric, unit, column of recording.values.
var roomReadings = func() [][]roomReading {
	out := make([][]roomReading, 8)
	for i := range 4 {
		out[i] = []roomReading{{"temperature", "°C", i}, {"light", "lux", 4 + i}, {"sound", "V", 8 + i}}
	}
	out[4] = []roomReading{{"co2", "ppm", 12}}
	out[5] = []roomReading{{"motion", "", 13}}
	out[6] = []roomReading{{"motion", "", 14}}
	out[7] = []roomReading{{"occupancy", "people", 15}}
	return out
}()

type roomReading struct {
	metric, unit string
	column       int
}

// readRecording unpacks the recording, once a process.
var readRecording = sync.OnceValues(func() (*recording, error) {
	z, err := gzip.NewReader(bytes.NewReader(roomOccupancy))
	if err != nil {
		return nil, fmt.Errorf("unpack the recorded room: %w", err)
	}
	lines, err := csv.NewReader(z).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("read the recorded room: %w", err)
	}
	return parseRecording(lines)
})

func parseRecording(lines [][]string) (*recording, error) {
	r := &recording{}
	var first time.Time
	for i, line := range lines[1:] {
		t, err := time.Parse("2006/01/02 15:04:05", line[0]+" "+line[1])
		if err != nil {
			return nil, fmt.Errorf("recorded room, row %d: %w", i+1, err)
		}
		if i == 0 {
			first = t
		}
		var v [16]float32
		for c := range v {
			x, err := strconv.ParseFloat(line[2+c], 32)
			if err != nil {
				return nil, fmt.Errorf("recorded room, row %d, column %s: %w", i+1, lines[0][2+c], err)
			}
			v[c] = float32(x)
		}
		at, calm := t.Sub(first), time.Duration(0)
		if i > 0 {
			gap := at - r.at[i-1]
			if gap <= 0 {
				return nil, fmt.Errorf("recorded room, row %d: time does not rise", i+1)
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

// RecordedRows is the number of rows of the recorded room; each holds 16 readings of 8 devices.
func RecordedRows() (int64, error) {
	r, err := readRecording()
	if err != nil {
		return 0, err
	}
	return int64(len(r.at)), nil
}
