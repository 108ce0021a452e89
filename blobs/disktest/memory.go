package disktest

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/sourcegraph/conc"
)

// Memory is a file system of its own, in memory, that can be filled up.
type Memory struct {
	Dir string
	// Gently is how many bytes, the last that are free, are filled at gentleRate; 0: all as fast as it goes.
	Gently int64

	t       testing.TB
	ballast string
}

// NewMemory mounts one at dir. Without root the test is skipped, and in CI it fails.
func NewMemory(t testing.TB, dir string, megabytes int) *Memory {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+strconv.Itoa(megabytes)+"m")
	if errors.Is(err, syscall.EPERM) && os.Getenv("CI") == "" {
		t.Skipf("NOT TESTED: a full disk needs a disk of its own, and only root may mount one (%v)", err)
	}
	if err != nil {
		t.Fatalf("mount a disk for this test: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return &Memory{Dir: dir, t: t, ballast: filepath.Join(dir, "ballast")}
}

const (
	fillStep   = 16 << 10 // bytes that are written to it at a time
	gentleRate = 50 << 20 // bytes a second
)

// Fill leaves no room on it.
func (d *Memory) Fill() {
	d.t.Helper()
	if err := d.fill(0); err != nil {
		d.t.Fatal(err)
	}
}

// FillBut leaves room for so many bytes on it.
func (d *Memory) FillBut(bytes int64) {
	d.t.Helper()
	f, err := os.Create(d.ballast)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, fillStep); d.free() > bytes; {
		if _, err := f.Write(block); err != nil {
			d.t.Fatal(err)
		}
	}
}

// fill writes until there is no room, and then takes what is freed, for so long.
func (d *Memory) fill(lasts time.Duration) error {
	f, err := os.Create(d.ballast)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, fillStep)
	for begun := time.Now(); ; {
		if _, err := f.Write(block); err == nil {
			if d.Gently > 0 && d.free() < d.Gently {
				time.Sleep(time.Second * fillStep / gentleRate)
			}
			continue
		}
		if time.Since(begun) >= lasts {
			return nil // full: that is the point
		}
		time.Sleep(5 * time.Millisecond) // until others have freed something
	}
}

// free is how many bytes can be written to it.
func (d *Memory) free() int64 {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(d.Dir, &fs); err != nil {
		return 0
	}
	return int64(fs.Bavail) * fs.Bsize // #nosec G115 -- a disk of a few megabytes
}

// Free makes room again.
func (d *Memory) Free() {
	d.t.Helper()
	if err := os.Remove(d.ballast); err != nil {
		d.t.Fatal(err)
	}
}

// FillAgain fills it for so long, again and again with a pause between, until stop is called. Then there is room.
func (d *Memory) FillAgain(pause, lasts time.Duration) (stop func()) {
	enough := make(chan struct{})
	var work conc.WaitGroup
	work.Go(func() {
		for {
			select {
			case <-enough:
				return
			case <-time.After(pause):
			}
			if err := d.fill(lasts); err != nil {
				continue // so full that not even the ballast can be made
			}
			if err := os.Remove(d.ballast); err != nil {
				d.t.Error(err)
				return
			}
		}
	})
	return func() { close(enough); work.Wait() }
}
