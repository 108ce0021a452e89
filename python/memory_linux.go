package python

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// canMeasure says whether memoryOf knows.
const canMeasure = true

// machineMemory is what the machine has, or its container (cgroup v2) may use; 0 where neither is known.
func machineMemory() int64 {
	var least int64
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		least = int64(info.Totalram) * int64(info.Unit)
	}
	if text, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil {
		if most, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64); err == nil && (least == 0 || most < least) {
			least = most
		}
	}
	return least
}

// memoryOf is what a process has in memory, in bytes (proc(5): the second field of statm is its resident pages); 0 when it is gone.
func memoryOf(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)) // #nosec G304 -- of a process of ours
	if err != nil {
		return 0
	}
	fields := bytes.Fields(text)
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}
