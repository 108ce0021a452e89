package clickhouse

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"
)

// dialer makes connections for ch-go, which reads everything under one deadline, also the server's greeting: the short
// one that has it look at its context while it waits for the answer to an insert would have a server that is busy, or
// far away, never be connected to.
type dialer struct{ sink *Sink }

func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := d.sink.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &patientConn{Conn: conn}, nil
}

// dial connects, encrypted where the settings say so. What is trusted and shown is read anew for each connection.
func (s *Sink) dial(ctx context.Context, network, address string) (net.Conn, error) {
	plain := &net.Dialer{Timeout: dialWait}
	config, err := s.tlsConfig()
	if err != nil {
		return nil, err
	}
	if config == nil {
		return plain.DialContext(ctx, network, address)
	}
	return (&tls.Dialer{NetDialer: plain, Config: config}).DialContext(ctx, network, address)
}

// patientConn waits for the first bytes as long as for a connection.
type patientConn struct {
	net.Conn
	greeted atomic.Bool
}

func (c *patientConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.greeted.Store(true)
	}
	return n, err
}

func (c *patientConn) SetReadDeadline(at time.Time) error {
	if least := time.Now().Add(dialWait); !at.IsZero() && at.Before(least) && !c.greeted.Load() {
		at = least
	}
	return c.Conn.SetReadDeadline(at)
}
