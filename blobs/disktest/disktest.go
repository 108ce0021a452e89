// Package disktest gives tests disks of their own, for which it needs root. The power of a [Disk] can be cut: it is an ext4
// file system in a file, of which only that remains which had been written to the device (a loop device and mkfs.ext4 are
// needed). A [Memory] can be filled up.
package disktest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"unsafe"
)

// Disk is a mounted file system.
type Disk struct {
	Dir string // where it is mounted; another after a power cut

	t     testing.TB
	base  string
	image string
	cuts  int
}

// New mounts an empty disk. It is unmounted with the test. Without the right to mount the test is not run, and says
// so; under CI it fails.
func New(t testing.TB, megabytes int64) *Disk {
	t.Helper()
	d := &Disk{t: t, base: t.TempDir()}
	d.image = filepath.Join(d.base, "image")
	f, err := os.Create(d.image)
	if err == nil {
		err = errors.Join(f.Truncate(megabytes<<20), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", d.image).CombinedOutput(); err != nil {
		d.cannot("mkfs.ext4", err, out)
	}
	d.mount()
	return d
}

// cannot ends the test where there is no such disk to be had.
func (d *Disk) cannot(what string, err error, out []byte) {
	d.t.Helper()
	if os.Getenv("CI") == "" {
		d.t.Skipf("NOT TESTED: a power cut needs root, a loop device and mkfs.ext4: %s: %v %s", what, err, out)
	}
	d.t.Fatalf("%s: %v\n%s", what, err, out)
}

// mount mounts the image. Nothing is written by the file system itself for a minute: what a test does not sync is
// not on the disk yet when it cuts the power.
func (d *Disk) mount() {
	d.t.Helper()
	d.Dir = filepath.Join(d.base, "disk"+strconv.Itoa(d.cuts))
	if err := os.Mkdir(d.Dir, 0o755); err != nil {
		d.t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop,commit=60", d.image, d.Dir).CombinedOutput(); err != nil {
		d.cannot("mount", err, out)
	}
	dir := d.Dir
	d.t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			d.t.Error(err)
		}
	})
}

// EXT4_IOC_SHUTDOWN, and its EXT4_GOING_FLAGS_NOLOGFLUSH: from now on nothing reaches the device, not even what is
// in the journal (fs/ext4/ext4.h). Whoever has files open gets errors.
const (
	ioctlShutdown = 0x8004587d
	withoutFlush  = 2
)

// CutPower ends the file system as a power cut does, and mounts what is left of it.
func (d *Disk) CutPower() {
	d.t.Helper()
	d.Cut()
	d.Restore()
}

// Cut is the power cut alone: from then on writing fails. Kill who writes before Restore, or they may write to what
// is under the disk.
func (d *Disk) Cut() {
	d.t.Helper()
	root, err := os.Open(d.Dir)
	if err != nil {
		d.t.Fatal(err)
	}
	flag := uint32(withoutFlush)
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, root.Fd(), ioctlShutdown, uintptr(unsafe.Pointer(&flag)))
	root.Close()
	if errno != 0 {
		d.t.Fatalf("cut the power of %s: %v", d.Dir, errno)
	}
}

// Restore mounts what is left on the device, at another Dir.
func (d *Disk) Restore() {
	d.t.Helper()
	d.cuts++
	// A copy, since the file system stays as long as anybody has a file of it open.
	left := filepath.Join(d.base, "image"+strconv.Itoa(d.cuts))
	if out, err := exec.Command("cp", "--sparse=always", d.image, left).CombinedOutput(); err != nil {
		d.t.Fatalf("%v\n%s", err, out)
	}
	if err := syscall.Unmount(d.Dir, syscall.MNT_DETACH); err != nil {
		d.t.Fatal(err)
	}
	d.image = left
	d.mount()
}
