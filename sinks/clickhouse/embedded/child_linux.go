package embedded

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// dieWithParent has the kernel kill a process when the thread that started it ends.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// diskSize is the size in bytes of the file system that a folder is on, 0 if it cannot be had.
func diskSize(dir string) uint64 {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0
	}
	return fs.Blocks * uint64(fs.Bsize) // #nosec G115 -- the size of a block is positive
}

// diskFree is how many bytes can be written to the file system that a folder is on.
func diskFree(dir string) uint64 {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0
	}
	return fs.Bavail * uint64(fs.Bsize) // #nosec G115 -- the size of a block is positive
}

// exchange has two files of one file system change names. Where file systems cannot do that, other is gone.
func exchange(one, other string) error {
	err := unix.Renameat2(unix.AT_FDCWD, one, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return os.Rename(one, other)
	}
	return os.NewSyscallError("renameat2", err)
}

// synchronous is FS_SYNC_FL of linux/fs.h, the S of chattr: a write returns when it is on the disk. What is made in a
// directory that has it has it too.
const synchronous = 0x8

// markSynchronous has a file or a directory written through from now on, and syncs what it holds.
func markSynchronous(path string) error {
	f, err := os.Open(path) // #nosec G304 -- a file of the engine's own data
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|synchronous))
	}
	if err != nil {
		return os.NewSyscallError("ioctl", err)
	}
	return errors.Join(f.Sync(), f.Close())
}
