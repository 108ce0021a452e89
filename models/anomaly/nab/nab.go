// Package nab scores an anomaly detector on the Numenta Anomaly Benchmark, by its rules (Lavin & Ahmad, "Evaluating Real-time
// Anomaly Detection Algorithms", 2015, section II; the standard profile of version 1.1).
//
// A corpus is a directory with data/<group>/<file>.csv (timestamp, value) and labels/combined_windows.json. A detection in a
// labelled window counts the more the earlier it is, once a window; one outside costs up to 0.11, less shortly after a window; a
// window without one costs 1. The first 15 % of a file, at most 750 rows, do not count. One threshold serves the whole corpus, the
// one that scores best. 0 is a detector that detects nothing, 100 one that detects every window at once and nothing else.
package nab

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// The standard profile.
const (
	falsePositive = 0.11
	falseNegative = 1.0
	probation     = 0.15
	probationMax  = 750
)

// File is one series with its labels.
type File struct {
	Name    string // group/file.csv
	Times   []time.Time
	Values  []float64
	Windows [][2]int // first and last row of each labelled window
}

// Load reads a corpus.
func Load(dir string) ([]File, error) {
	text, err := os.ReadFile(filepath.Join(dir, "labels", "combined_windows.json"))
	if err != nil {
		return nil, fmt.Errorf("read corpus: %w", err)
	}
	var windows map[string][][2]string
	if err := json.Unmarshal(text, &windows); err != nil {
		return nil, fmt.Errorf("read corpus: labels: %w", err)
	}
	var files []File
	for _, name := range slices.Sorted(maps.Keys(windows)) {
		f, err := loadFile(filepath.Join(dir, "data", filepath.FromSlash(name)), windows[name])
		if err != nil {
			return nil, fmt.Errorf("read corpus: %s: %w", name, err)
		}
		f.Name = name
		files = append(files, f)
	}
	return files, nil
}

func loadFile(path string, windows [][2]string) (f File, err error) {
	in, err := os.Open(path)
	if err != nil {
		return f, err
	}
	defer in.Close()
	rows, err := csv.NewReader(in).ReadAll()
	if err != nil {
		return f, err
	}
	for _, r := range rows[min(1, len(rows)):] {
		t, err := time.Parse(time.DateTime, r[0])
		if err != nil {
			return f, err
		}
		v, err := strconv.ParseFloat(r[1], 64)
		if err != nil {
			return f, err
		}
		f.Times, f.Values = append(f.Times, t), append(f.Values, v)
	}
	for _, w := range windows {
		var at [2]time.Time
		for i := range at {
			if at[i], err = time.Parse("2006-01-02 15:04:05.999999", w[i]); err != nil {
				return f, err
			}
		}
		first := slices.IndexFunc(f.Times, func(t time.Time) bool { return !t.Before(at[0]) })
		last := len(f.Times) - 1
		for last >= 0 && f.Times[last].After(at[1]) {
			last--
		}
		f.Windows = append(f.Windows, [2]int{first, last})
	}
	return f, nil
}

// sigmoid weighs a detection by where it is relative to a window: -1 at its beginning, 0 at its end, above 0 after it.
func sigmoid(x float64) float64 {
	if x > 3 {
		return -1
	}
	return 2/(1+math.Exp(5*x)) - 1
}

// point is what a detection at a row would count.
type point struct {
	score  float64 // of the detector
	window int     // number of the window, over the corpus; -1 outside
	worth  float64
}

// Result is the score of a detector.
type Result struct {
	Score     float64 // 0 to 100
	Threshold float64 // that gave it
	Windows   int     // labelled
	Found     int     // of them
	False     int     // detections outside windows
}

func (r Result) String() string {
	return fmt.Sprintf("NAB %.1f (threshold %.2f): %d of %d windows found, %d false alarms", r.Score, r.Threshold, r.Found, r.Windows, r.False)
}

// Best scores a corpus with the threshold that suits it best. scores has a row for each row of each file.
func Best(files []File, scores [][]float64) Result {
	points, windows := worths(files, scores)
	// From the highest score down, each row that begins to count changes the sum.
	slices.SortFunc(points, func(a, b point) int {
		switch {
		case a.score > b.score:
			return -1
		case a.score < b.score:
			return 1
		}
		return 0
	})
	found := make([]float64, windows)
	for i := range found {
		found[i] = -falseNegative
	}
	sum := -falseNegative * float64(windows)
	now := Result{Windows: windows, Threshold: math.Inf(1)}
	best := now
	for i := 0; i < len(points); {
		at := points[i].score
		for ; i < len(points) && points[i].score == at; i++ {
			p := points[i]
			if p.window < 0 {
				sum += p.worth
				now.False++
				continue
			}
			if found[p.window] == -falseNegative {
				now.Found++
			}
			if p.worth > found[p.window] {
				sum += p.worth - found[p.window]
				found[p.window] = p.worth
			}
		}
		now.Threshold = at
		if now.Score = normalized(sum, windows); now.Score > best.Score {
			best = now
		}
	}
	return best
}

// At scores a corpus with a given threshold.
func At(files []File, scores [][]float64, threshold float64) Result {
	cut := make([][]float64, len(scores))
	for i, s := range scores {
		cut[i] = make([]float64, len(s))
		for j, v := range s {
			if v >= threshold {
				cut[i][j] = 1
			}
		}
	}
	points, windows := worths(files, cut)
	r, found := Result{Windows: windows, Threshold: threshold}, make([]float64, windows)
	sum := 0.0
	for i := range found {
		found[i] = -falseNegative
	}
	for _, p := range points {
		switch {
		case p.score < 1:
		case p.window < 0:
			sum += p.worth
			r.False++
		default:
			found[p.window] = max(found[p.window], p.worth)
		}
	}
	for _, f := range found {
		sum += f
		if f > -falseNegative {
			r.Found++
		}
	}
	r.Score = normalized(sum, windows)
	return r
}

// normalized is 0 for a detector that detects nothing and 100 for a perfect one.
func normalized(sum float64, windows int) float64 {
	return 100 * (sum + falseNegative*float64(windows)) / (2 * float64(windows))
}

func worths(files []File, scores [][]float64) (points []point, windows int) {
	for n, f := range files {
		quiet := min(int(probation*float64(len(f.Values))), probationMax)
		next, last := 0, -1 // the window at hand or to come; the one before
		for i := range f.Values {
			for next < len(f.Windows) && i > f.Windows[next][1] {
				last, next = next, next+1
			}
			if i < quiet {
				continue
			}
			p := point{score: scores[n][i], window: -1, worth: -falsePositive}
			if next < len(f.Windows) && i >= f.Windows[next][0] {
				w := f.Windows[next]
				p.window = windows + next
				p.worth = sigmoid(-float64(w[1]-i+1)/float64(w[1]-w[0]+1)) / sigmoid(-1)
			} else if last >= 0 {
				w := f.Windows[last]
				p.worth = falsePositive * sigmoid(float64(i-w[1])/float64(w[1]-w[0]))
			}
			points = append(points, p)
		}
		windows += len(f.Windows)
	}
	return points, windows
}
