package python

import "syscall"

// apart puts a worker into a process group of its own, so that it can be ended with all that it has started; it dies with this process.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
