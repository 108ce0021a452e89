package ingest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"hearthline/ingest/reason"
)

// addressesMax bounds how many addresses the gate remembers: some 200 bytes each.
const addressesMax = 200_000

// gate counts what each address has open and begins, before anything is computed for it. A network of IPv6 is one address: whoever
// has one has 2^64 of them.
type gate struct {
	openMax int        // 0: no limit
	perSec  rate.Limit // handshakes; 0: no limit
	pace    *rate.Limiter
	waitMax time.Duration

	mu   sync.Mutex
	from map[netip.Addr]*origin
}

type origin struct {
	open   int
	begins *rate.Limiter
}

func newGate(a *Admission) *gate {
	g := &gate{openMax: a.AddressConnections, perSec: rate.Limit(a.AddressHandshakes), waitMax: a.AcceptWait, from: make(map[netip.Addr]*origin)}
	if a.AcceptsPerSecond > 0 {
		g.pace = rate.NewLimiter(rate.Limit(a.AcceptsPerSecond), max(1, int(a.AcceptsPerSecond/10)))
	}
	return g
}

// keyOf gives what stands for an address, of which the text may have a port.
func keyOf(text string) netip.Addr {
	if host, _, err := net.SplitHostPort(text); err == nil {
		text = host
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{} // all that have none share one
	}
	if a = a.Unmap().WithZone(""); a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

func (g *gate) limits() bool { return g.openMax > 0 || g.perSec > 0 }

// enter counts a connection of an address, or says why it may not come in.
func (g *gate) enter(from netip.Addr, now time.Time) (reason.Reason, bool) {
	if !g.limits() {
		return 0, true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.from[from]
	if a == nil {
		if len(g.from) >= addressesMax {
			g.forget(now)
		}
		if len(g.from) >= addressesMax {
			return reason.Connections, false
		}
		a = new(origin)
		if g.perSec > 0 {
			a.begins = rate.NewLimiter(g.perSec, max(1, int(2*g.perSec)))
		}
		g.from[from] = a
	}
	if g.openMax > 0 && a.open >= g.openMax {
		return reason.Connections, false
	}
	if a.begins != nil && !a.begins.AllowN(now, 1) {
		return reason.Rate, false
	}
	a.open++
	return 0, true
}

// leave is called once for each that entered.
func (g *gate) leave(from netip.Addr) {
	if !g.limits() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.from[from]
	if a == nil {
		return
	}
	if a.open--; a.open == 0 && a.begins == nil {
		delete(g.from, from)
	}
}

// forget drops the addresses that have nothing open and would be let in anyway. Callers hold mu.
func (g *gate) forget(now time.Time) {
	for k, a := range g.from {
		if a.open == 0 && (a.begins == nil || a.begins.TokensAt(now) >= float64(a.begins.Burst())) {
			delete(g.from, k)
		}
	}
}

// sweep is forget, for who does not hold mu.
func (g *gate) sweep(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget(now)
}

var errTooMany = errors.New("too many begin at once")

// wait holds a connection back until the pace allows its handshake: a storm is stretched, not refused. Who would have to wait too long is told
// so at once, and comes again by its own back-off.
func (g *gate) wait(ctx context.Context) error {
	if g.pace == nil {
		return nil
	}
	r := g.pace.Reserve()
	d := r.Delay()
	if d == 0 {
		return nil
	}
	if d > g.waitMax {
		r.Cancel()
		return errTooMany
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		r.Cancel()
		return ctx.Err()
	}
}
