package apache

import "syscall"

// apart keeps Ctrl-C in a terminal for this process, which stops its brokers itself, and has the kernel kill them
// when the thread that started them ends.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
