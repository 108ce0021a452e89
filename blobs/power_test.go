package blobs_test

import (
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"hearthline/blobs"
	"hearthline/blobs/disktest"
)

// TestPowerCut: what Put has acknowledged is there after a power cut, whole; what it has not is there whole or not at
// all. Without syncing some is lost: the test's disk does lose what is not synced.
func TestPowerCut(t *testing.T) {
	for name, noSync := range map[string]bool{"synced": false, "not synced": true} {
		t.Run(name, func(t *testing.T) {
			disk := disktest.New(t, 64)
			d := &blobs.Directory{Path: filepath.Join(disk.Dir, "store"), NoSync: noSync}
			must(t, d.Open())
			want := map[string][]byte{}
			put := func(name string, size int) {
				b := bytes.Repeat([]byte(name), size/len(name)+1)
				must(t, d.Put(t.Context(), name, bytes.NewReader(b)))
				want[name] = b
			}
			for i := range 30 {
				put(fmt.Sprintf("dt=2026-11-%02d/hour=%02d/%d.parquet", i%3, i%5, i), 1+i*3000)
			}
			put("replaced", 10)
			put("replaced", 50_000)
			must(t, d.Put(t.Context(), "deleted", bytes.NewReader([]byte("x"))))
			must(t, d.Delete(t.Context(), "deleted"))
			cut := readFunc(func([]byte) (int, error) { disk.CutPower(); return 0, io.EOF })
			if err := d.Put(t.Context(), "half", io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), cut)); err == nil && !noSync {
				t.Error("a put was acknowledged without power")
			}
			_ = d.Close() // of a disk that is gone

			after := open(t, filepath.Join(disk.Dir, "store"), noSync)
			lost := 0
			for name, b := range want {
				r, err := after.Get(t.Context(), name)
				if err != nil {
					lost++
					continue
				}
				got, err := io.ReadAll(r)
				must(t, err)
				must(t, r.Close())
				if !bytes.Equal(got, b) {
					lost++
				}
			}
			list, err := after.List(t.Context(), "")
			must(t, err)
			switch {
			case noSync && lost == 0:
				t.Error("nothing was lost without syncing: this disk proves nothing")
			case !noSync && (lost > 0 || len(list) != len(want)):
				t.Errorf("%d of %d objects lost; listed are %v", lost, len(want), list)
			}
			must(t, after.Put(t.Context(), "next", bytes.NewReader([]byte("x")))) // sweeps what was left
			if n := files(t, filepath.Join(disk.Dir, "store", ".partial")); n != 2 {
				t.Errorf("%d files in .partial; want the 2 locks", n)
			}
			t.Logf("%d of %d objects lost", lost, len(want))
		})
	}
}
