package blobs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"testing"

	"github.com/sourcegraph/conc/pool"

	"hearthline/blobs"
	"hearthline/blobs/s3test"
)

func TestRead(t *testing.T) {
	server := s3test.Start(t)
	for what, s := range map[string]blobs.Store{
		"a directory": open(t, t.TempDir(), true),
		"a bucket":    openBucket(t, server.NewBucket(), "", server.Settings(server.URL)),
	} {
		for _, size := range []int{0, 1, 100_000, 16 << 20, 40<<20 + 7} {
			want := pattern(size)
			must(t, s.Put(t.Context(), "x", bytes.NewReader(want)))
			got, err := blobs.Read(t.Context(), s, "x")
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes read of %d, %v", what, len(got), size, err)
			}
		}
		if _, err := blobs.Read(t.Context(), s, "nothing"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: what is not there: %v", what, err)
		}
	}
}

// BenchmarkState is a checkpoint of 1 GB: as one object, or as those of four partitions at once.
func BenchmarkState(b *testing.B) {
	server := s3test.Start(b)
	d := &blobs.Directory{Path: b.TempDir()}
	must(b, d.Open())
	defer d.Close()
	state := pattern(1 << 30)
	for where, s := range map[string]blobs.Store{"dir": d, "bucket": openBucket(b, server.NewBucket(), "", server.Settings(server.URL))} {
		for _, objects := range []int{1, 4} {
			each := len(state) / objects
			all := func(f func(i int) error) {
				p := pool.New().WithErrors()
				for i := range objects {
					p.Go(func() error { return f(i) })
				}
				must(b, p.Wait())
			}
			name := func(i int) string { return fmt.Sprintf("state-%d-%d", objects, i) }
			b.Run(fmt.Sprintf("%s/put/%dx%dMB", where, objects, each>>20), func(b *testing.B) {
				b.SetBytes(int64(len(state)))
				for b.Loop() {
					all(func(i int) error { return s.Put(b.Context(), name(i), bytes.NewReader(state[i*each:(i+1)*each])) })
				}
			})
			b.Run(fmt.Sprintf("%s/read/%dx%dMB", where, objects, each>>20), func(b *testing.B) {
				b.SetBytes(int64(len(state)))
				for b.Loop() {
					all(func(i int) error { _, err := blobs.Read(b.Context(), s, name(i)); return err })
				}
			})
			b.Run(fmt.Sprintf("%s/readall/%dx%dMB", where, objects, each>>20), func(b *testing.B) {
				b.SetBytes(int64(len(state)))
				for b.Loop() {
					all(func(i int) error {
						r, err := s.Get(b.Context(), name(i))
						if err != nil {
							return err
						}
						_, err = io.ReadAll(r)
						return errors.Join(err, r.Close())
					})
				}
			})
		}
	}
}
