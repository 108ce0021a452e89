package ingest

import (
	"context"
	"net/http"
	"time"

	"hearthline/ingest/identity"
	"hearthline/ingest/mqtt"
)

// during gives a context that ends, with the reason as its cause, when an identity is no longer valid: for requests that last. done must be
// called.
func (g *Gateway) during(ctx context.Context, id *identity.Identity) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stay := &stay{id: id, end: cancel}
	g.connectionsMu.Lock()
	g.stays[stay] = struct{}{}
	g.connectionsMu.Unlock()
	return ctx, func() {
		g.connectionsMu.Lock()
		delete(g.stays, stay)
		g.connectionsMu.Unlock()
		cancel(nil)
	}
}

// stay is a request of an identity that is under way.
type stay struct {
	id  *identity.Identity
	end context.CancelCauseFunc
}

// whileValid is during, for a request whose body may come slowly: reading it ends too.
func (g *Gateway) whileValid(w http.ResponseWriter, r *http.Request, id *identity.Identity) (*http.Request, func()) {
	ctx, done := g.during(r.Context(), id)
	ran := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ran)
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) // a request that has ended needs none
	})
	return r.WithContext(ctx), func() {
		if !stop() {
			<-ran // net/http takes the request apart when its handler returns
		}
		done()
	}
}

// evictGone ends the connections and requests of identities that are no longer valid: revoked, expired, or with another entry. Of those that
// were revoked it ends the sessions too: what waits for them is nobody's.
func (g *Gateway) evictGone(now time.Time) {
	type gone struct {
		c   *connection
		why error
	}
	var out []gone
	g.connectionsMu.Lock()
	for c := range g.connections {
		if err := c.id.Gone(now); err != nil {
			out = append(out, gone{c, err})
		}
	}
	for s := range g.stays {
		if err := s.id.Gone(now); err != nil {
			s.end(err)
		}
	}
	g.connectionsMu.Unlock()
	for _, x := range out {
		x.c.evict(mqtt.CodeNotAuthorized, x.why.Error())
	}
	if n := g.registry.EndOf(func(who any) bool { return who.(*identity.Identity).Revoked() }); n > 0 {
		g.Logger.Info("gateway: sessions of clients that were revoked have ended", "sessions", n)
	}
}
