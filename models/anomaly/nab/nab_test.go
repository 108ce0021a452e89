package nab

import (
	"math"
	"os"
	"testing"
	"time"

	"hearthline/models/anomaly"
)

func scoreAll(files []File, p anomaly.Params) [][]float64 {
	all := make([][]float64, len(files))
	for i, f := range files {
		var s anomaly.Scorer
		all[i] = make([]float64, len(f.Values))
		for j, v := range f.Values {
			of := f.Times[j].Sub(f.Times[j].Truncate(24 * time.Hour))
			all[i][j] = s.Score(&p, v, float64(of)/float64(24*time.Hour))
		}
	}
	return all
}

// TestScore measures the scorer on the corpus in NAB_DIR, or on the four files in testdata.
func TestScore(t *testing.T) {
	dir, floor := os.Getenv("NAB_DIR"), 70.0
	if dir == "" {
		dir, floor = "testdata", 57
	}
	files, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	scores := scoreAll(files, anomaly.Default())
	r := Best(files, scores)
	t.Logf("%d files: %v", len(files), r)
	if again := At(files, scores, r.Threshold); math.Abs(again.Score-r.Score) > 1e-9 || again.Found != r.Found || again.False != r.False {
		t.Errorf("with the best threshold given: %v", again)
	}
	for _, threshold := range []float64{7, 8, 9, 10, 12} {
		t.Logf("%v", At(files, scores, threshold))
	}
	if r.Score < floor {
		t.Errorf("%v; the floor is %v", r, floor)
	}
}

// made is a file of n rows with the given windows.
func made(n int, windows ...[2]int) File {
	return File{Name: "made", Values: make([]float64, n), Times: make([]time.Time, n), Windows: windows}
}

func TestRules(t *testing.T) {
	files := []File{made(1000, [2]int{400, 499}, [2]int{700, 799})}
	run := func(rows ...int) Result {
		s := make([]float64, 1000)
		for _, r := range rows {
			s[r] = 1
		}
		return At(files, [][]float64{s}, 0.5)
	}
	for _, c := range []struct {
		name string
		rows []int
		want float64
	}{
		{"nothing", nil, 0},
		{"all at once and nothing else", []int{400, 700}, 100},
		{"again in a window costs nothing", []int{400, 420, 499, 700}, 100},
		{"one of two", []int{700}, 50},
		{"in the first rows nothing counts", []int{0, 149, 400, 700}, 100},
		{"a false alarm before any window", []int{150, 400, 700}, 100 - 100*0.11/4},

		{"a false alarm right after a window costs little", []int{400, 500, 700}, 100 + 100*0.11*sigmoid(1.0/99)/4},
		{"the end of a window counts little", []int{499, 700}, 50 + 100*(1+sigmoid(-0.01)/sigmoid(-1))/4},
	} {
		if got := run(c.rows...); math.Abs(got.Score-c.want) > 1e-9 {
			t.Errorf("%s: %v; want %.4f", c.name, got, c.want)
		}
	}
	best := Best(files, [][]float64{func() []float64 { s := make([]float64, 1000); s[400], s[700], s[600] = 3, 2, 1; return s }()})
	if best.Threshold != 2 || best.Score != 100 || best.Found != 2 {
		t.Errorf("the best threshold: %v", best)
	}
}

func TestLoadErrors(t *testing.T) {
	if _, err := Load(t.TempDir()); err == nil {
		t.Error("an empty directory was read as a corpus")
	}
}
