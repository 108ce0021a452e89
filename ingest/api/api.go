// Package api is what the JSON interfaces of the HTTP door share: whom a request speaks for, problem documents (RFC 9457),
// and event streams (Server-Sent Events).
package api

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"hearthline/ingest/identity"
	"hearthline/ingest/reason"
)

// Authenticate says whom a request speaks for. When it does not know, it has answered.
type Authenticate func(http.ResponseWriter, *http.Request) *identity.Identity

// Problem is an answer that is no success (RFC 9457). Its type is a stable name under /problems/.
type Problem struct {
	Type   string        `json:"type"`
	Title  string        `json:"title"`
	Status int           `json:"status"`
	Detail string        `json:"detail,omitempty"`
	Retry  time.Duration `json:"-"` // when to try again; 0: it is not said
}

func (p *Problem) Error() string { return p.Detail }

// Refused makes a problem.
func Refused(status int, name, detail string) *Problem {
	return &Problem{Type: "/problems/" + name, Title: http.StatusText(status), Status: status, Detail: detail}
}

// Later makes a problem that may be gone when the request is sent again, some seconds later.
func Later(status int, name, detail string) *Problem {
	p := Refused(status, name, detail)
	p.Retry = 5 * time.Second
	return p
}

// Write answers with the problem.
func (p *Problem) Write(w http.ResponseWriter) {
	if p.Retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(p.Retry/time.Second))))
	}
	write(w, p.Status, "application/problem+json", p)
}

// Answer answers with JSON.
func Answer(w http.ResponseWriter, status int, v any) { write(w, status, "application/json", v) }

func write(w http.ResponseWriter, status int, media string, v any) {
	w.Header().Set("Content-Type", media)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone if this fails
}

// Handler answers a request of an identity; what it returns is answered as refuse says.
type Handler func(w http.ResponseWriter, r *http.Request, id *identity.Identity) error

// Route adds a handler to a door.
func Route(mux *http.ServeMux, pattern string, who Authenticate, serve Handler, refuse func(error) *Problem) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		id := who(w, r)
		if id == nil {
			return
		}
		if err := serve(w, r, id); err != nil {
			refuse(err).Write(w)
		}
	})
}

// HomeOf is the home a request speaks of: that of its path, query or body, or the only one of the identity.
func HomeOf(r *http.Request, id *identity.Identity, body string) (string, error) {
	for _, home := range []string{r.PathValue("home"), r.URL.Query().Get("home"), body, id.OnlyHome()} {
		if home != "" {
			return home, nil
		}
	}
	return "", Refused(http.StatusBadRequest, "home", "these credentials hold several homes: say which, as home in the query")
}

// May turns a refusal into an answer.
func May(no *reason.Refusal) error {
	if no != nil {
		return Refused(http.StatusForbidden, "forbidden", no.Detail)
	}
	return nil
}

// Spend takes one request from the rate of an identity, or says that there is none left.
func Spend(id *identity.Identity) error {
	if !id.Messages.AllowN(time.Now(), 1) {
		return Later(http.StatusTooManyRequests, "rate", "over the rate of these credentials")
	}
	return nil
}
