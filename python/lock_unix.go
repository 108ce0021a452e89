package python

import (
	"os"

	"golang.org/x/sys/unix"
)

// lock waits until no other process has the file locked.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) // #nosec G304 -- in the cache
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil { // #nosec G115 -- a file descriptor
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
