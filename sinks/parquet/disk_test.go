package parquet_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearthline/blobs"
	"hearthline/blobs/disktest"
	"hearthline/blobs/s3test"
	"hearthline/sinks/parquet"
)

// everyFile lists what a reader that globs finds under a folder, and what else stands there.
func everyFile(t *testing.T, dir string) (parquets, others []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !e.IsDir() && strings.HasSuffix(path, ".parquet"):
			parquets = append(parquets, path)
		case !e.IsDir():
			others = append(others, path)
		}
		return nil
	}))
	return parquets, others
}

// TestFullDisk: on a disk that is full a write fails with what to do, and leaves nothing that looks like a file of
// rows, even under a name that a glob of *.parquet would find. When there is room again the same range is written.
func TestFullDisk(t *testing.T) {
	disk := disktest.New(t, 24)
	dir := filepath.Join(disk.Dir, "parquet")
	s := parquet.New()
	s.To = dir
	must(t, s.Open(t.Context()))
	defer s.Close()
	recs := readings(200_000) // some megabytes
	must(t, s.Write(t.Context(), rangeOf(0, 9), recs))
	ballast := filepath.Join(disk.Dir, "ballast")
	f, err := os.Create(ballast)
	must(t, err)
	for err == nil {
		_, err = f.Write(make([]byte, 64<<10))
	}
	must(t, f.Close())
	for range 5 { // tried again and again, as the runtime does
		err := s.Write(t.Context(), rangeOf(10, 19), recs)
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free some space") {
			t.Fatalf("write to a full disk: %v", err)
		}
	}
	// A reader sees whole ranges only.
	n, err := parquet.Count(t.Context(), mustOpen(t, dir), "readings")
	if err != nil || n.Rows != 200_000 {
		t.Errorf("on a full disk %d rows can be read, %v", n.Rows, err)
	}
	parquets, others := everyFile(t, dir)
	if len(parquets) != n.Files || len(others) > 2 { // the locks
		t.Errorf("on a full disk there are %v and %v", parquets, others)
	}
	must(t, os.Remove(ballast))
	must(t, s.Write(t.Context(), rangeOf(10, 19), recs))
	if n, err := parquet.Count(t.Context(), mustOpen(t, dir), "readings"); err != nil || n.Rows != 400_000 {
		t.Errorf("when there is room again %d rows can be read, %v", n.Rows, err)
	}
}

func mustOpen(t *testing.T, dir string) blobs.Store {
	t.Helper()
	d, err := blobs.Dir(dir)
	must(t, err)
	return d
}

// TestSlowBucket: while a file crawls to a bucket, nobody sees it, and the sink takes no more memory than for its one
// file: Write returns when it has arrived, and holds up who calls.
func TestSlowBucket(t *testing.T) {
	server := s3test.Start(t)
	proxy := s3test.NewProxy(t, server.URL)
	bucket := server.NewBucket()
	s := parquet.New()
	s.To, s.S3 = "s3://"+bucket+"/files", server.Settings(proxy.URL)
	must(t, s.Open(t.Context()))
	defer s.Close()
	direct, err := blobs.OpenS3(bucket, "files", server.Settings(server.URL))
	must(t, err)
	defer direct.Close()
	recs := readings(200_000)
	must(t, s.Write(t.Context(), rangeOf(0, 9), recs))
	size := s.Stats().Bytes
	proxy.Slow(int(size) / 2) // two seconds a range
	runtime.GC()
	var before, most runtime.MemStats
	runtime.ReadMemStats(&before)
	begun, ranges := time.Now(), int64(3)
	for i := range ranges {
		result := make(chan error, 1)
		go func() { result <- s.Write(t.Context(), rangeOf(10+10*i, 19+10*i), recs) }()
		for done := false; !done; {
			select {
			case err := <-result:
				must(t, err)
				done = true
			case <-time.After(50 * time.Millisecond):
				// Footers are read: a file that is not whole has none.
				n, err := parquet.Count(t.Context(), direct, "readings")
				if err != nil || n.Rows%1000 != 0 || n.Rows > 200_000*(i+2) {
					t.Fatalf("while a file is on its way %d rows can be read, %v", n.Rows, err)
				}
				var now runtime.MemStats
				runtime.ReadMemStats(&now)
				if now.HeapInuse > most.HeapInuse {
					most = now
				}
			}
		}
	}
	if took := time.Since(begun); took < 2*time.Second {
		t.Errorf("%d slow ranges were written in %v: nothing was held up", ranges, took)
	}
	if most.HeapInuse > before.HeapInuse+200<<20 {
		t.Errorf("%d MB of memory, %d before", most.HeapInuse>>20, before.HeapInuse>>20)
	}
	if n, err := parquet.Count(t.Context(), direct, "readings"); err != nil || n.Rows != 200_000*(ranges+1) {
		t.Errorf("%d rows, %v", n.Rows, err)
	}
	if left := server.Uploads(bucket); len(left) > 0 {
		t.Errorf("uploads left: %v", left)
	}
	t.Logf("%d bytes a range, %d MB of memory more at most", size, (int64(most.HeapInuse)-int64(before.HeapInuse))>>20)
}

// TestPowerCut: a range that Write has acknowledged is there after a power cut, whole.
func TestPowerCut(t *testing.T) {
	disk := disktest.New(t, 64)
	s := parquet.New()
	s.To = filepath.Join(disk.Dir, "parquet")
	must(t, s.Open(t.Context()))
	recs := readings(50_000)
	for i := range int64(5) {
		must(t, s.Write(t.Context(), rangeOf(10*i, 10*i+9), recs))
	}
	disk.CutPower()
	_ = s.Close() // of a disk that is gone
	if n, err := parquet.Count(t.Context(), mustOpen(t, filepath.Join(disk.Dir, "parquet")), "readings"); err != nil || n.Rows != 250_000 {
		t.Errorf("after a power cut %d rows of 250000, %v", n.Rows, err)
	}
}
