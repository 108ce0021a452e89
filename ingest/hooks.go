package ingest

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"hearthline/ingest/hook"
	"hearthline/ingest/identity"
	"hearthline/ingest/payload"
	"hearthline/ingest/reason"
)

// openHook is a webhook that requests may come to.
type openHook struct {
	name            string
	lock            atomic.Pointer[hook.Lock]
	mark            identity.FileMark // of the secret's file
	messages, bytes *rate.Limiter
}

// checkHooks says what is wrong with the settings of webhooks.
func (g *Gateway) checkHooks() error {
	for name, h := range g.Hooks {
		if name == "" || strings.ContainsFunc(name, func(c rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-_", c) }) {
			return fmt.Errorf("hooks: %q is no name; want a-z, 0-9, - and _, since it stands in an address", name)
		}
		if err := h.Check(); err != nil {
			return fmt.Errorf("hooks: %s: %w", name, err)
		}
	}
	return nil
}

// openHooks reads the secrets for the first time.
func (g *Gateway) openHooks() error {
	g.hooks = map[string]*openHook{}
	for name := range g.Hooks {
		h := &openHook{name: name}
		h.messages, h.bytes = g.limiters(identity.Limits{})
		g.hooks[name] = h
	}
	return g.loadHooks()
}

// loadHooks reads the secrets whose files have changed. What cannot be read leaves what was read before in force.
func (g *Gateway) loadHooks() error {
	for _, h := range g.hooks {
		settings := g.Hooks[h.name]
		mark := h.mark
		if settings.SecretFile != "" {
			var err error
			if mark, err = identity.MarkOf(settings.SecretFile); err != nil {
				return fmt.Errorf("hooks: %s: %w", h.name, err)
			}
		}
		if h.lock.Load() != nil && mark == h.mark {
			continue
		}
		lock, err := settings.Open()
		if err != nil {
			return fmt.Errorf("hooks: %s: %w", h.name, err)
		}
		h.lock.Store(lock)
		h.mark = mark
	}
	return nil
}

// strangersPart: bodies that are not yet known to be anybody's hold at most this part of the memory for all requests.
const strangersPart = 4

// hookRequest takes what a cloud pushes. The signature is of the body as it was sent, so it is read before anybody is
// known: into a part of the memory for requests, and not compressed, since that would be work for a stranger.
func (g *Gateway) hookRequest(w http.ResponseWriter, r *http.Request) (*receipt, *problem) {
	h := g.hooks[r.PathValue("name")]
	if h == nil {
		return nil, problemOf(http.StatusNotFound, "not-found", "no such webhook")
	}
	media, p := g.mayTake(r)
	if p != nil {
		return nil, p
	}
	if e := r.Header.Values("Content-Encoding"); len(e) > 0 && !slices.Equal(e, []string{"identity"}) {
		return nil, g.refuseRequest(http.StatusUnsupportedMediaType, "content-encoding", reason.Media, "webhooks are taken as they were signed: not compressed")
	}
	lock := h.lock.Load()
	claim, err := lock.Read(r.Header, time.Now())
	if err != nil {
		return nil, g.refuseRequest(http.StatusUnauthorized, "signature", reason.Signature, err.Error())
	}
	held := &allowance{g: g, of: &g.strangers, max: int64(g.HTTPWaitingBytesMax / strangersPart)}
	defer held.release()
	body, p := g.body(w, r, held)
	if p != nil {
		return nil, p
	}
	if err := claim.Verify(body); err != nil {
		return nil, g.refuseRequest(http.StatusUnauthorized, "signature", reason.Signature, err.Error())
	}
	now := time.Now()
	if wait := max(shortage(h.messages, now, 1), shortage(h.bytes, now, len(body))); wait > 0 {
		return nil, g.tooFast(wait)
	}
	spend(h.messages, now, 1)
	spend(h.bytes, now, len(body))
	from := &sender{name: "hook " + h.name, scope: payload.Scope{HomeUnsaid: lock.Home, May: lock.May, Subject: lock.Device}}
	return g.takeRequest(r, from, media, claim.Key(), body)
}
