//go:build !linux

package embedded

import (
	"errors"
	"math"
	"os"
	"syscall"
)

// dieWithParent is what only Linux knows; elsewhere the server outlives a wrapper that is killed by force.
func dieWithParent() *syscall.SysProcAttr { return nil }

// diskSize is the size in bytes of the file system that a folder is on; 0: it is not asked here.
func diskSize(string) uint64 { return 0 }

// diskFree is how many bytes can be written there; it is not asked here.
func diskFree(string) uint64 { return math.MaxUint64 }

// exchange puts one in the place of other, which is gone with it.
func exchange(one, other string) error { return os.Rename(one, other) }

// markSynchronous is done by a flag of files that only Linux knows.
func markSynchronous(string) error { return errors.ErrUnsupported }
