package blobs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"hearthline/blobs"
	"hearthline/blobs/blobstest"
)

func TestDirectory(t *testing.T) {
	for name, noSync := range map[string]bool{"synced": false, "not synced": true} {
		t.Run(name, func(t *testing.T) {
			blobstest.Run(t, func(t *testing.T) func() blobs.Store {
				dir := filepath.Join(t.TempDir(), "made", "by open")
				return func() blobs.Store { return open(t, dir, noSync) }
			})
		})
	}
}

func open(t *testing.T, dir string, noSync bool) *blobs.Directory {
	t.Helper()
	d := &blobs.Directory{Path: dir, NoSync: noSync}
	if err := d.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestLinksDoNotLeadOut(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600))
	must(t, os.Symlink(outside, filepath.Join(dir, "out")))
	must(t, os.Symlink("../"+filepath.Base(outside), filepath.Join(dir, "relative")))
	must(t, os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "file")))
	must(t, os.Mkdir(filepath.Join(dir, "inside"), 0o755))
	must(t, os.Symlink("inside", filepath.Join(dir, "link")))
	d := open(t, dir, false)
	for _, name := range []string{"out/secret", "relative/secret", "file"} {
		if _, err := d.Get(t.Context(), name); err == nil {
			t.Errorf("get %q followed a link out of the store", name)
		}
	}
	for _, name := range []string{"out/new", "relative/new", "out/deep/new"} {
		if err := d.Put(t.Context(), name, strings.NewReader("x")); err == nil {
			t.Errorf("put %q followed a link out of the store", name)
		}
	}
	if err := d.Delete(t.Context(), "out/secret"); err == nil {
		t.Error("delete followed a link out of the store")
	}
	must(t, d.Put(t.Context(), "file", strings.NewReader("mine"))) // replaces the link itself
	must(t, d.Put(t.Context(), "link/x", strings.NewReader("mine")))
	if b, err := os.ReadFile(filepath.Join(outside, "secret")); err != nil || string(b) != "secret" {
		t.Errorf("the file outside now holds %q, %v", b, err)
	}
	if n := files(t, outside); n != 1 {
		t.Errorf("%d files outside; want 1", n)
	}
	list, err := d.List(t.Context(), "")
	must(t, err)
	if fmt.Sprint(list) != "[{file 4} {inside/x 4}]" {
		t.Errorf("list: %v", list)
	}
}

func TestCrashLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	c := exec.Command(os.Args[0], "-test.run=^TestChildDiesInPut$")
	c.Env = append(os.Environ(), "BLOBS_TEST_DIR="+dir)
	out, err := c.CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child should have killed itself: %v\n%s", err, out)
	}
	if n := files(t, filepath.Join(dir, ".partial")); n < 3 { // the lock, the session's lock, the partial file
		t.Fatalf("the crash left %d files; this test needs some", n)
	}
	d := open(t, dir, false)
	list, err := d.List(t.Context(), "")
	must(t, err)
	if fmt.Sprint(list) != "[{whole 5}]" {
		t.Errorf("after a crash: %v", list)
	}
	must(t, d.Put(t.Context(), "next", strings.NewReader("x")))
	if n := files(t, filepath.Join(dir, ".partial")); n != 2 { // the lock and our own session's
		t.Errorf("%d files in .partial after the next put; want 2", n)
	}
}

func TestChildDiesInPut(t *testing.T) {
	dir := os.Getenv("BLOBS_TEST_DIR")
	if dir == "" {
		return // it is a part of TestCrashLeavesNothing
	}
	d := open(t, dir, false)
	must(t, d.Put(t.Context(), "whole", strings.NewReader("whole")))
	dies := readFunc(func([]byte) (int, error) { return 0, syscall.Kill(os.Getpid(), syscall.SIGKILL) })
	t.Fatal(d.Put(t.Context(), "half", io.MultiReader(bytes.NewReader(make([]byte, 100_000)), dies, dies, dies)))
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// TestFileLimit makes writes fail as a full disk does, with the limit that every process has.
func TestFileLimit(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, false)
	must(t, d.Put(t.Context(), "x", strings.NewReader("old")))
	err := withFileLimit(t, 50_000, func() error {
		return d.Put(t.Context(), "x", bytes.NewReader(make([]byte, 100_000)))
	})
	if !errors.Is(err, syscall.EFBIG) || !strings.Contains(err.Error(), "ulimit -f") || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v; want EFBIG, the store and what to do", err)
	}
	if n := files(t, filepath.Join(dir, ".partial")); n != 2 {
		t.Errorf("%d files in .partial after a put that failed; want the 2 locks", n)
	}
	b, err := os.ReadFile(filepath.Join(dir, "x"))
	if err != nil || string(b) != "old" {
		t.Errorf("the old object holds %q, %v", b, err)
	}
	must(t, d.Put(t.Context(), "x", bytes.NewReader(make([]byte, 100_000))))
}

func withFileLimit(t *testing.T, bytes uint64, do func() error) error {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var old syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old))
	must(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: bytes, Max: old.Max}))
	defer func() { must(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old)) }()
	return do()
}

func TestDirectoryErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for where, want := range map[string]string{
		file:            "not a directory",
		"":              "no directory given",
		"gs://bucket/x": "gs is not supported",
		"s3://":         "want s3://bucket/prefix",
		"s3://b/x":      "cannot be a bucket",
		"s3://Bucket/x": "cannot be a bucket",
		"s3://buc/../x": "part that begins with a dot",
		"file://host/x": "three slashes",
		"file:///%zz":   "invalid URL escape",
	} {
		if _, err := blobs.Open(where, blobs.S3{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("open %q: %v; want %q", where, err, want)
		}
	}
	dir := t.TempDir()
	s, err := blobs.Open("file://"+dir, blobs.S3{})
	must(t, err)
	must(t, s.Put(t.Context(), "a", strings.NewReader("x")))
	if _, err := os.Stat(filepath.Join(dir, "a")); err != nil {
		t.Error(err)
	}
	if err := s.Put(t.Context(), "a/b", strings.NewReader("x")); err == nil {
		t.Error("put below an object gave no error")
	}
	must(t, blobs.Check(dir))
	if err := blobs.Check("gs://x"); err == nil {
		t.Error("check took gs://x")
	}
	must(t, s.(*blobs.Directory).Close())
}

// TestReadOnly: who only reads writes nothing, so a read-only mount will do.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o600))
	d := open(t, dir, false)
	_, err := d.List(t.Context(), "")
	must(t, err)
	r, err := d.Get(t.Context(), "x")
	must(t, err)
	if _, ok := r.(io.ReaderAt); !ok {
		t.Error("an object in a directory cannot be read at random")
	}
	must(t, r.Close())
	if n := files(t, dir); n != 1 {
		t.Errorf("reading left %d files; want 1", n)
	}
}

func TestFolderRemovedByHand(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, false)
	must(t, d.Put(t.Context(), "a/b/c", strings.NewReader("x")))
	must(t, os.RemoveAll(filepath.Join(dir, "a")))
	must(t, d.Put(t.Context(), "a/b/c", strings.NewReader("y")))
	if n := files(t, filepath.Join(dir, "a")); n != 1 {
		t.Errorf("%d files in a; want 1", n)
	}
}

// FuzzNames: whatever the name, a store keeps to its directory, and what it takes can be got back.
func FuzzNames(f *testing.F) {
	for _, name := range append([]string{"a", "a/b.parquet", "dt=2026-11-22/hour=18/r", "ü", "...", "a/...b"}, blobstest.BadNames...) {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		dir := filepath.Join(t.TempDir(), "in")
		d := open(t, dir, true)
		err := d.Put(t.Context(), name, strings.NewReader("x"))
		if (err == nil) != (blobs.CheckName(name) == nil) {
			t.Fatalf("put %q: %v; check: %v", name, err, blobs.CheckName(name))
		}
		around, rerr := os.ReadDir(filepath.Dir(dir))
		must(t, rerr)
		if len(around) != 1 {
			t.Fatalf("put %q wrote outside the store: %v", name, around)
		}
		if err != nil {
			return
		}
		list, err := d.List(t.Context(), name)
		if err != nil || len(list) != 1 || list[0].Name != name {
			t.Fatalf("list %q: %v, %v", name, list, err)
		}
		must(t, d.Delete(t.Context(), name))
	})
}

func BenchmarkPut(b *testing.B) {
	body := make([]byte, 64<<10)
	for name, noSync := range map[string]bool{"synced": false, "not synced": true} {
		b.Run(name, func(b *testing.B) {
			d := &blobs.Directory{Path: b.TempDir(), NoSync: noSync}
			if err := d.Open(); err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			b.SetBytes(int64(len(body)))
			for i := 0; b.Loop(); i++ {
				if err := d.Put(b.Context(), fmt.Sprintf("dt=%d/%d", i%24, i), bytes.NewReader(body)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func files(t *testing.T, dir string) int {
	t.Helper()
	n := 0
	must(t, filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			n++
		}
		return err
	}))
	return n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
