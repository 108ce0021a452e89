package blobs

import (
	"errors"
	"io/fs"
	"syscall"
)

// hint says what to do about an error of the disk; "" where we do not know.
func hint(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return " (the disk is full: free some space, or keep the data on another disk)"
	case errors.Is(err, syscall.EDQUOT):
		return " (the disk quota is used up: raise it, or keep the data on another disk)"
	case errors.Is(err, syscall.EFBIG):
		return " (the file is larger than this process or file system may write: see ulimit -f)"
	case errors.Is(err, syscall.EROFS):
		return " (the file system is read-only)"
	case errors.Is(err, syscall.EXDEV):
		return " (a folder in it lies on another file system; the store needs one file system for all)"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return " (too many files are open: see ulimit -n)"
	case errors.Is(err, fs.ErrPermission):
		return " (give this user the right to write there)"
	}
	return ""
}

// under says that err is of a path below something that is not a folder.
func under(err error) bool { return errors.Is(err, syscall.ENOTDIR) }
