package clitest

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// Disk is a file system of its own, of which all but a little can be filled up.
type Disk struct {
	t       *testing.T
	dir     string
	ballast string
}

// NewDisk mounts one at dir. Without root the test is skipped, and in CI it fails.
func NewDisk(t *testing.T, dir string, megabytes int) *Disk {
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
	return &Disk{t: t, dir: dir, ballast: filepath.Join(dir, "ballast")}
}

// Fill leaves no room on it.
func (d *Disk) Fill() {
	d.t.Helper()
	f, err := os.Create(d.ballast)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for {
		if _, err := f.Write(block); err != nil {
			return // full: that is the point
		}
	}
}

// Free makes room again.
func (d *Disk) Free() {
	d.t.Helper()
	if err := os.Remove(d.ballast); err != nil {
		d.t.Fatal(err)
	}
}
