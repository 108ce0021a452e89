package nab

import (
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

// TestScore measures the scorer on the corpus in NAB_DIR, or on the few files in testdata.
func TestScore(t *testing.T) {
	dir, floor := os.Getenv("NAB_DIR"), 50.0
	if dir == "" {
		dir = "testdata"
	}
	files, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	scores := scoreAll(files, anomaly.Default())
	r := Best(files, scores)
	t.Logf("%d files: %v", len(files), r)
	for _, th := range []float64{6, 7, 8, 9, 10, 11, 12, 14} {
		t.Logf("%v", At(files, scores, th))
	}
	if r.Score < floor {
		t.Errorf("%v; the floor is %v", r, floor)
	}
}
