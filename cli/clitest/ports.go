package clitest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// FreePort finds a loopback port that is free now, below those that outgoing connections take.
func FreePort(t *testing.T) int {
	t.Helper()
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port below 32768")
	return 0
}

// FreeAddr is such a port as host:port.
func FreeAddr(t *testing.T) string { return fmt.Sprintf("127.0.0.1:%d", FreePort(t)) }
