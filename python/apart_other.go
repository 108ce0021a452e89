//go:build !linux

package python

import "syscall"

// apart puts a worker into a process group of its own, so that it can be ended with all that it has started. It sees by its closed
// socket that this process has gone.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
