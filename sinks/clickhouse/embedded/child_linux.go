package embedded

import "syscall"

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
