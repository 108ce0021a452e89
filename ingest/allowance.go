package ingest

import (
	"cmp"
	"errors"
	"io"
	"sync/atomic"
)

// bodyStep is what a request's body asks for at a time, bytes.
const bodyStep = 64 << 10

var errAllowance = errors.New("too many bytes of requests at once")

// allowance is what one request's body may hold of the memory that all requests share (HTTPWaitingBytesMax). It grows with the
// bytes that have really come, decompressed, so that who only claims many takes none from others. It is used by one goroutine.
type allowance struct {
	g    *Gateway
	of   *atomic.Int64 // nil: g.bodies
	max  int64         // 0: HTTPWaitingBytesMax
	held int64
	used int64
}

// over reads r, as long as the allowance grows.
func (a *allowance) over(r io.Reader) io.Reader { return allowed{a, r} }

type allowed struct {
	*allowance
	r io.Reader
}

func (a allowed) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	for a.used += int64(n); a.held < a.used; a.held += bodyStep {
		if a.pool().Add(bodyStep) > cmp.Or(a.max, int64(a.g.HTTPWaitingBytesMax)) {
			a.pool().Add(-bodyStep)
			return n, errAllowance
		}
	}
	return n, err
}

// release gives everything back.
func (a *allowance) release() {
	a.pool().Add(-a.held)
	a.held = 0
}

func (a *allowance) pool() *atomic.Int64 {
	if a.of != nil {
		return a.of
	}
	return &a.g.bodies
}
