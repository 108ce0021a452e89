// Package blobstest is the contract suite of [blobs.Store]: every store runs it.
package blobstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/sourcegraph/conc/pool"

	"hearthline/blobs"
)

// Run checks a store. create makes a new, empty place and returns what opens a store over it; a test may open several
// at once, as several processes would.
func Run(t *testing.T, create func(t *testing.T) (open func() blobs.Store)) {
	cases := []struct {
		name string
		test func(t *testing.T, open func() blobs.Store)
	}{
		{"keeps what is put", keeps},
		{"keeps what is large", keepsLarge},
		{"replaces", replaces},
		{"missing objects", missing},
		{"lists by prefix", lists},
		{"deletes", deletes},
		{"refuses bad names", refusesNames},
		{"a failed put changes nothing", failedPut},
		{"a cancelled put changes nothing", cancelledPut},
		{"an open object stays as it was", openStays},
		{"readers see whole objects", wholeObjects},
		{"puts at once", putsAtOnce},
		{"opening does not disturb a put", openDuringPut},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.test(t, create(t)) })
	}
}

func keeps(t *testing.T, open func() blobs.Store) {
	s := open()
	for name, size := range map[string]int{"empty": 0, "one": 1, "a/b/c/deep.bin": 70_000, "große Datei ☃": 3 << 20, "dt=2026-11-22/hour=18/x.parquet": 5} {
		want := content(name, size)
		put(t, s, name, want)
		equal(t, s, name, want)
		equal(t, open(), name, want)
	}
	// A reader that gives little at a time, and its end together with its last bytes.
	want := content("slow", 4000)
	ok(t, s.Put(t.Context(), "slow", iotest.DataErrReader(iotest.OneByteReader(bytes.NewReader(want)))))
	equal(t, s, "slow", want)
}

// large is more than any store sends or writes at once.
const large = 40 << 20

func keepsLarge(t *testing.T, open func() blobs.Store) {
	s := open()
	want := content("large", large)
	for what, r := range map[string]io.Reader{
		"bytes":          bytes.NewReader(want),
		"a stream":       io.MultiReader(bytes.NewReader(want)), // whose length nobody knows
		"a whole number": bytes.NewReader(want[:32<<20]),        // of parts, whatever their size
	} {
		ok(t, s.Put(t.Context(), what, r))
		size := int64(large)
		if what == "a whole number" {
			size = 32 << 20
		}
		equal(t, s, what, want[:size])
		sameList(t, s, what, blobs.Info{Name: what, Size: size})
	}
	// What has been read of a source before is not put again.
	r := bytes.NewReader(want)
	_, err := r.Seek(large-1000, io.SeekStart)
	ok(t, err)
	ok(t, s.Put(t.Context(), "rest", r))
	equal(t, s, "rest", want[large-1000:])
	got, err := s.Get(t.Context(), "bytes")
	ok(t, err)
	defer got.Close()
	if at, is := got.(io.ReaderAt); is {
		b := make([]byte, 1000)
		n, err := at.ReadAt(b, large-500)
		if n != 500 || err != io.EOF || !bytes.Equal(b[:n], want[large-500:]) {
			t.Errorf("read at random over the end: %d bytes, %v", n, err)
		}
	}
}

func replaces(t *testing.T, open func() blobs.Store) {
	s := open()
	for _, size := range []int{10, 100_000, 3, 0} {
		want := content("v", size)
		put(t, s, "x/v", want)
		equal(t, s, "x/v", want)
		sameList(t, open(), "", blobs.Info{Name: "x/v", Size: int64(size)})
	}
}

func missing(t *testing.T, open func() blobs.Store) {
	s := open()
	put(t, s, "folder/object", []byte("x"))
	for _, name := range []string{"nothing", "folder", "folder/nothing", "folder/object/below"} {
		r, err := s.Get(t.Context(), name)
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("get %q: %v; want fs.ErrNotExist", name, err)
		}
		if err == nil {
			r.Close()
		}
	}
	sameList(t, s, "nothing/")
	sameList(t, s, "folder/object/below/")
}

func lists(t *testing.T, open func() blobs.Store) {
	s := open()
	sameList(t, s, "")
	// "a-b" < "a/b" < "ab" by bytes, though a folder walk gives "a" first.
	names := []string{"a-b", "a/b", "a/c/d", "ab", "b", "readings/dt=1/x", "readings/dt=10/x", "readings2/x"}
	for _, n := range slices.Backward(names) {
		put(t, s, n, []byte(n))
	}
	for prefix, want := range map[string][]string{
		"":                names,
		"a":               {"a-b", "a/b", "a/c/d", "ab"},
		"a/":              {"a/b", "a/c/d"},
		"a/c":             {"a/c/d"},
		"a/c/d":           {"a/c/d"},
		"readings":        {"readings/dt=1/x", "readings/dt=10/x", "readings2/x"},
		"readings/":       {"readings/dt=1/x", "readings/dt=10/x"},
		"readings/dt=1":   {"readings/dt=1/x", "readings/dt=10/x"},
		"readings/dt=10/": {"readings/dt=10/x"},
		"c":               nil,
	} {
		var infos []blobs.Info
		for _, n := range want {
			infos = append(infos, blobs.Info{Name: n, Size: int64(len(n))})
		}
		sameList(t, s, prefix, infos...)
	}
}

func deletes(t *testing.T, open func() blobs.Store) {
	s := open()
	put(t, s, "a/b", []byte("x"))
	put(t, s, "a/c", []byte("y"))
	for range 2 { // a second time is no error
		ok(t, s.Delete(t.Context(), "a/b"))
	}
	ok(t, s.Delete(t.Context(), "never/was"))
	ok(t, s.Delete(t.Context(), "a")) // a folder is no object
	sameList(t, open(), "", blobs.Info{Name: "a/c", Size: 1})
	ok(t, s.Delete(t.Context(), "a/c"))
	put(t, s, "a/b", []byte("again"))
	equal(t, s, "a/b", []byte("again"))
}

// BadNames are names that no store takes.
var BadNames = []string{
	"", "/", "/abs", "a/", "a//b", "..", "../x", "a/../b", "a/..", ".", "./a", "a/./b", ".hidden", "a/.hidden",
	"a\x00b", "a\nb", "a\\b", "..\\x", "\xff", strings.Repeat("x", blobs.PartMax+1),
	strings.Repeat("x/", blobs.NameMax/2) + "x",
}

func refusesNames(t *testing.T, open func() blobs.Store) {
	s := open()
	for _, name := range BadNames {
		if err := s.Put(t.Context(), name, strings.NewReader("x")); !errors.Is(err, blobs.ErrName) {
			t.Errorf("put %q: %v; want blobs.ErrName", name, err)
		}
		if _, err := s.Get(t.Context(), name); !errors.Is(err, blobs.ErrName) {
			t.Errorf("get %q: %v; want blobs.ErrName", name, err)
		}
		if err := s.Delete(t.Context(), name); !errors.Is(err, blobs.ErrName) {
			t.Errorf("delete %q: %v; want blobs.ErrName", name, err)
		}
	}
	for _, prefix := range []string{"/", "../", "a/../", "..", "a//"} {
		if _, err := s.List(t.Context(), prefix); !errors.Is(err, blobs.ErrName) {
			t.Errorf("list %q: %v; want blobs.ErrName", prefix, err)
		}
	}
	sameList(t, s, "")
}

func failedPut(t *testing.T, open func() blobs.Store) {
	s := open()
	old := content("old", 1000)
	put(t, s, "x", old)
	broken := errors.New("the source broke")
	for _, name := range []string{"x", "new/y"} {
		for _, after := range []int{0, 1, 200_000, large} {
			r := io.MultiReader(bytes.NewReader(content("new", after)), iotest.ErrReader(broken))
			if err := s.Put(t.Context(), name, r); !errors.Is(err, broken) {
				t.Errorf("put %q from a source that breaks after %d bytes: %v", name, after, err)
			}
		}
	}
	sameList(t, s, "", blobs.Info{Name: "x", Size: 1000})
	equal(t, s, "x", old)
}

func cancelledPut(t *testing.T, open func() blobs.Store) {
	s := open()
	for _, after := range []int{0, 100, 200_000, large} {
		ctx, cancel := context.WithCancel(t.Context())
		r := io.MultiReader(bytes.NewReader(content("new", after)), onRead(cancel), strings.NewReader("more"))
		if err := s.Put(ctx, "y", r); !errors.Is(err, context.Canceled) {
			t.Errorf("put cancelled after %d bytes: %v", after, err)
		}
		cancel()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, getErr := s.Get(ctx, "y")
	_, listErr := s.List(ctx, "")
	for op, err := range map[string]error{"get": getErr, "list": listErr, "delete": s.Delete(ctx, "y")} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a cancelled context: %v", op, err)
		}
	}
	sameList(t, s, "")
}

func openStays(t *testing.T, open func() blobs.Store) {
	s := open()
	for what, change := range map[string]func(name string) error{
		"replaced": func(name string) error { return s.Put(t.Context(), name, strings.NewReader("new")) },
		"deleted":  func(name string) error { return s.Delete(t.Context(), name) },
	} {
		want := content(what, 100_000)
		put(t, s, what, want)
		r, err := s.Get(t.Context(), what)
		ok(t, err)
		head := make([]byte, 10)
		_, err = io.ReadFull(r, head)
		ok(t, err)
		ok(t, change(what))
		rest, err := io.ReadAll(r)
		ok(t, r.Close())
		if err != nil && !errors.Is(err, blobs.ErrChanged) {
			t.Errorf("reading an object that was %s while open: %v", what, err)
		}
		if got := append(head, rest...); !bytes.HasPrefix(want, got) || err == nil && len(got) != len(want) {
			t.Errorf("an object that was %s while open has changed under its reader", what)
		}
	}
}

func wholeObjects(t *testing.T, open func() blobs.Store) {
	s := open()
	versions := [][]byte{content("a", 50_000), content("b", 80_000), content("c", 1)}
	put(t, s, "x", versions[0])
	var whole atomic.Int64
	p := pool.New().WithErrors().WithContext(t.Context()).WithCancelOnError()
	for range 2 {
		p.Go(func(ctx context.Context) error {
			for i := range 40 {
				if err := s.Put(ctx, "x", bytes.NewReader(versions[i%len(versions)])); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for range 2 {
		reader := open()
		p.Go(func(ctx context.Context) error {
			for range 200 {
				got, err := get(ctx, reader, "x")
				if errors.Is(err, blobs.ErrChanged) {
					continue // said, not mixed
				}
				if err != nil {
					return err
				}
				whole.Add(1)
				if !slices.ContainsFunc(versions, func(v []byte) bool { return bytes.Equal(v, got) }) {
					return fmt.Errorf("read %d bytes that nobody put", len(got))
				}
				list, err := reader.List(ctx, "")
				if err != nil {
					return err
				}
				if len(list) != 1 || !slices.ContainsFunc(versions, func(v []byte) bool { return int64(len(v)) == list[0].Size }) {
					return fmt.Errorf("listed %v while one object was being replaced", list)
				}
			}
			return nil
		})
	}
	ok(t, p.Wait())
	if whole.Load() == 0 {
		t.Error("no reader has ever read the object to its end")
	}
}

func putsAtOnce(t *testing.T, open func() blobs.Store) {
	const writers, each = 4, 20
	p := pool.New().WithErrors().WithContext(t.Context())
	for w := range writers {
		s := open()
		p.Go(func(ctx context.Context) error {
			for i := range each {
				name := fmt.Sprintf("dt=%d/w%d/%d", i%3, w, i)
				if err := s.Put(ctx, name, strings.NewReader(name)); err != nil {
					return err
				}
				if err := s.Put(ctx, "same/name", strings.NewReader("0123456789")); err != nil {
					return err
				}
			}
			return nil
		})
	}
	ok(t, p.Wait())
	s := open()
	list, err := s.List(t.Context(), "")
	ok(t, err)
	if len(list) != writers*each+1 {
		t.Errorf("%d objects; want %d", len(list), writers*each+1)
	}
	for _, o := range list {
		want := o.Name
		if o.Name == "same/name" {
			want = "0123456789"
		}
		equal(t, s, o.Name, []byte(want))
	}
}

func openDuringPut(t *testing.T, open func() blobs.Store) {
	s := open()
	put(t, s, "before", []byte("x"))
	r := io.MultiReader(strings.NewReader("one "), onRead(func() {
		other := open()
		sameList(t, other, "", blobs.Info{Name: "before", Size: 1})
		put(t, other, "after", []byte("y"))
	}), strings.NewReader("two"))
	ok(t, s.Put(t.Context(), "x", r))
	equal(t, s, "x", []byte("one two"))
	equal(t, s, "after", []byte("y"))
}

// onRead is an empty reader that does something when it is read.
func onRead(do func()) io.Reader {
	return readFunc(func([]byte) (int, error) { do(); return 0, io.EOF })
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func content(seed string, size int) []byte {
	return bytes.Repeat([]byte(seed+"·"), size/len(seed)+1)[:size]
}

func get(ctx context.Context, s blobs.Store, name string) ([]byte, error) {
	r, err := s.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

func put(t *testing.T, s blobs.Store, name string, b []byte) {
	t.Helper()
	ok(t, s.Put(t.Context(), name, bytes.NewReader(b)))
}

func equal(t *testing.T, s blobs.Store, name string, want []byte) {
	t.Helper()
	got, err := get(t.Context(), s, name)
	ok(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%q holds %d bytes that differ from the %d put", name, len(got), len(want))
	}
}

func sameList(t *testing.T, s blobs.Store, prefix string, want ...blobs.Info) {
	t.Helper()
	got, err := s.List(t.Context(), prefix)
	ok(t, err)
	if !slices.Equal(got, want) {
		t.Errorf("list %q: %v; want %v", prefix, got, want)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
