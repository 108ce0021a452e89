package clickhouse

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
)

// write fails the test when the range is not stored.
func write(t testing.TB, s *Sink, stream string, first int64, recs ...arrow.Record) {
	t.Helper()
	// Other tests make the shared engine fall, and it is back in seconds; no other error is tried again.
	deadline := time.Now().Add(time.Minute)
	for {
		err := s.Write(context.Background(), rangeOf(stream, 0, first, first+9), recs)
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "EOF") && !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func TestReadingsReachTableRollupsAndLatest(t *testing.T) {
	s := openSink(t)
	a, b := readings(t, checkedMem(t), 1, 5000, testDay), readings(t, checkedMem(t), 2, 3000, testDay)
	for range 3 {
		write(t, s, "readings", 0, a, b)
	}
	for sql, want := range map[string]string{
		"SELECT count() FROM readings": "8000",
		"SELECT sum(rows) = (SELECT countIf(value IS NOT NULL) FROM readings) FROM readings_1m":       "1",
		"SELECT sum(count) = (SELECT countIf(value IS NOT NULL) FROM readings) FROM readings_1m_view": "1",
		"SELECT sum(count) = (SELECT countIf(value IS NOT NULL) FROM readings) FROM readings_1h_view": "1",
		"SELECT count() = (SELECT uniqExact(home, device, metric) FROM readings) FROM latest_view":    "1",
	} {
		if got := scalar(t, s, sql); got != want {
			t.Errorf("%s: %s; want %s", sql, got, want)
		}
	}
}
