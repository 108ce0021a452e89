package simulator

import (
	"context"
	"testing"
	"time"
)

// finish runs s to its end.
func finish(t *testing.T, s *Simulator) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatalf("%v; %+v", err, s.Stats())
	}
	if ctx.Err() != nil {
		t.Fatalf("not done after 60 s: %+v", s.Stats())
	}
}

// equal fails the test unless the gateway holds what s expects.
func equal(t *testing.T, g *gateway, s *Simulator) {
	t.Helper()
	want, err := s.ExpectedRows()
	must(t, err)
	if got := g.count(); got != want {
		t.Errorf("the gateway holds %d rows, %d are acknowledged; %+v", got, want, s.Stats())
	}
	g.check()
}

// equalByName is equal, and the readings that the simulator names are those that the gateway holds. It holds for runs
// that all had the same settings.
func equalByName(t *testing.T, g *gateway, s *Simulator) {
	t.Helper()
	equal(t, g, s)
	want, err := s.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	n := int64(0)
	for r := range s.Stored() {
		n++
		if g.rows[seriesKey{r.Home, r.Device, r.Metric}][r.Seq] == nil {
			t.Errorf("%+v is to be stored, and the gateway does not hold it", r)
			break
		}
	}
	if n != want {
		t.Errorf("%d readings are named as to be stored, %d rows are acknowledged", n, want)
	}
}

func TestFiniteWork(t *testing.T) {
	g := newGateway(t)
	s := g.simulate(t.TempDir())
	finish(t, s)
	equalByName(t, g, s)
	var want int64
	for i := 1; i <= s.Homes; i++ {
		for _, d := range newHome(s.Seed, i).kit {
			want += int64(len(d.metrics)) * s.Rounds
		}
	}
	if got, _ := s.ExpectedRows(); got != want {
		t.Errorf("%d rows, want %d", got, want)
	}
	st := s.Stats()
	if st.Generated != want || st.Finished != s.Homes || st.Outstanding != 0 || st.Unavailable != 0 || st.LatencyP50 == 0 {
		t.Errorf("%+v", st)
	}
}

func TestRecordedRooms(t *testing.T) {
	g := newGateway(t)
	s := g.simulate(t.TempDir())
	var n int64 = 10_129 // a lap of the first
	if raceDetector {
		n = 2500 // all of it is played where each row costs less
	}
	s.Homes, s.Recorded, s.Speed, s.RecordedRows = 0, true, 0, n
	finish(t, s)
	equalByName(t, g, s)
	if got, _ := s.ExpectedRows(); got != n*(16+5) {
		t.Errorf("%d rows, want %d", got, n*(16+5))
	}
	t.Logf("%+v", s.Stats())
}
