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
type dialer struct{ tls *tls.Config }

func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	plain := &net.Dialer{Timeout: dialWait}
	if d.tls == nil {
		conn, err := plain.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &patientConn{Conn: conn}, nil
	}
	conn, err := (&tls.Dialer{NetDialer: plain, Config: d.tls}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &patientConn{Conn: conn}, nil
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
