//go:build !linux

package apache

import "syscall"

// apart keeps Ctrl-C in a terminal for this process. Only Linux also ends brokers whose parent was killed by force.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
