//go:build linux || darwin || freebsd

package embedded

import "syscall"

// diskSpace says how many bytes of the file system of a folder are free, and how many it has.
func diskSpace(dir string) (free, size uint64, err error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0, 0, err
	}
	return uint64(fs.Bavail) * uint64(fs.Bsize), fs.Blocks * uint64(fs.Bsize), nil // #nosec G115 -- sizes are positive
}
