//go:build !linux

package embedded

import "syscall"

// dieWithParent is what only Linux knows; elsewhere the server outlives a wrapper that is killed by force.
func dieWithParent() *syscall.SysProcAttr { return nil }
