package ingest

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// tcpEstablished is the state of a connection that neither side has closed (include/net/tcp_states.h).
const tcpEstablished = 1

// abandoned says whether a client has given up while it waited: to shake hands with it would be for nothing, and in a storm there are
// many such.
func abandoned(c net.Conn) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	gone := false
	if err := raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO)
		gone = err == nil && info.State != tcpEstablished
	}); err != nil {
		return true // it is closed
	}
	return gone
}
