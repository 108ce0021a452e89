package snapshot

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
)

func written(t testing.TB, version int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b, "stage", version)
	w.Uint(math.MaxUint64)
	w.Int(math.MinInt64)
	w.Fixed(7)
	w.Float(math.Copysign(0, -1))
	w.Bool(true)
	w.String("köln")
	w.Bytes(nil)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	r, version, err := NewReader(bytes.NewReader(written(t, 3)), "stage", 3)
	if err != nil || version != 3 {
		t.Fatalf("version %d: %v", version, err)
	}
	if r.Uint() != math.MaxUint64 || r.Int() != math.MinInt64 || r.Fixed() != 7 || !math.Signbit(r.Float()) || !r.Bool() || r.String() != "köln" || len(r.Bytes()) != 0 {
		t.Error("something came back changed")
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNotOursIsRefused(t *testing.T) {
	for what, c := range map[string]struct {
		text  []byte
		stage string
		want  string
	}{
		"another stage":  {written(t, 1), "other", "state of something else"},
		"a newer layout": {written(t, 9), "stage", "layout 9 is newer than 3"},
		"nothing":        {nil, "stage", "no header"},
		"no header":      {bytes.Repeat([]byte("x"), 1<<17), "stage", "no header"},
		"no version":     {[]byte("hearthline stage state x\n"), "stage", "is no number"},
		"a version of 0": {[]byte("hearthline stage state 0\n"), "stage", "is no number"},
	} {
		if _, _, err := NewReader(bytes.NewReader(c.text), c.stage, 3); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v; want %q", what, err, c.want)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestErrorsOfTheWorldAreTold(t *testing.T) {
	w := NewWriter(full{}, "stage", 1)
	w.String(strings.Repeat("x", 1<<20))
	if err := w.Close(); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("got %v", err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add(written(f, 1))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, _, err := NewReader(bytes.NewReader(text), "stage", 1)
		if err != nil {
			return
		}
		r.Uint()
		r.Int()
		r.Fixed()
		r.Float()
		r.Bool()
		_ = r.String()
		r.Bytes()
		if r.Close() == nil && !bytes.Equal(text[:20], written(t, 1)[:20]) {
			t.Error("another header was taken")
		}
	})
}
