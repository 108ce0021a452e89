package blobs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hearthline/blobs"
	"hearthline/blobs/blobstest"
)

func TestPatientIsAStore(t *testing.T) {
	blobstest.Run(t, func(t *testing.T) func() blobs.Store {
		dir := filepath.Join(t.TempDir(), "d")
		return func() blobs.Store { return blobs.Patient{Store: open(t, dir, true), For: time.Nanosecond} }
	})
}

// awayStore fails until a time, and then is another.
type awayStore struct {
	blobs.Store
	until time.Time
	tries int
}

var errAway = errors.New("away")

func (s *awayStore) Put(ctx context.Context, name string, r io.Reader) error {
	if s.tries++; time.Now().Before(s.until) {
		if _, err := io.CopyN(io.Discard, r, 3); err != nil {
			return err
		}
		return errAway
	}
	return s.Store.Put(ctx, name, r)
}

func TestPatient(t *testing.T) {
	d := open(t, t.TempDir(), true)
	synctest.Test(t, func(t *testing.T) {
		away := &awayStore{Store: d, until: time.Now().Add(time.Minute)}
		p := blobs.Patient{Store: away, For: 2 * time.Minute}
		must(t, p.Put(t.Context(), "x", bytes.NewReader([]byte("whole"))))
		if away.tries < 10 || away.tries > 40 {
			t.Errorf("%d tries in a minute", away.tries)
		}
		away.until = time.Now().Add(time.Hour)
		begun := time.Now()
		if err := p.Put(t.Context(), "y", strings.NewReader("whole")); !errors.Is(err, errAway) {
			t.Errorf("after the patience has ended: %v", err)
		}
		if took := time.Since(begun); took < time.Minute || took > 3*time.Minute {
			t.Errorf("patience of two minutes ended after %v", took)
		}
		// A source that can be read once is not put twice, in parts.
		away.tries = 0
		if err := p.Put(t.Context(), "z", io.MultiReader(strings.NewReader("whole"))); !errors.Is(err, errAway) || away.tries != 1 {
			t.Errorf("%d tries of a stream: %v", away.tries, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Put(ctx, "y", strings.NewReader("whole")); !errors.Is(err, errAway) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("when the context ends: %v; want both reasons", err)
		}
		begun = time.Now()
		if _, err := p.Get(t.Context(), "nothing"); !errors.Is(err, fs.ErrNotExist) || time.Since(begun) > 0 {
			t.Errorf("what is not there was waited for: %v", err)
		}
	})
	same(t, d, "x", []byte("whole"))
}
