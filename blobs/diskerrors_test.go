package blobs

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestHint(t *testing.T) {
	for errno, want := range map[syscall.Errno]string{
		syscall.ENOSPC: "disk is full", syscall.EDQUOT: "quota", syscall.EROFS: "read-only", syscall.EXDEV: "one file system",
		syscall.EMFILE: "ulimit -n", syscall.EACCES: "right to write", syscall.EFBIG: "ulimit -f", syscall.EIO: "",
	} {
		err := fmt.Errorf("outer: %w", &os.PathError{Op: "write", Path: "x", Err: errno})
		if got := hint(err); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%v: hint %q; want %q", errno, got, want)
		}
	}
}
