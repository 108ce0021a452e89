package console

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const token = "0123456789abcdef0123456789abcdef"

var everyPath = []string{"/", "/healthz", "/readyz", "/metrics", "/api/graph", "/api/status", "/api/status/stream", "/api/tap?stream=readings", "/app.js", "/nothing"}

// Who reaches what, by where the console listens and what it was told.
func TestDoors(t *testing.T) {
	health := "/healthz /readyz"
	for _, c := range []struct {
		name   string
		listen string
		server *Server
		auth   func(*http.Request)
		host   string
		open   string // the paths that are not refused; * is all
	}{
		{"loopback", "127.0.0.1:80", &Server{}, nil, "localhost", "*"},
		{"loopback by a strange name", "127.0.0.1:80", &Server{}, nil, "evil.example", ""},
		{"loopback, IPv6", "[::1]:80", &Server{}, nil, "[::1]", "*"},
		{"loopback with a token, without it", "127.0.0.1:80", &Server{Token: token}, nil, "localhost", health},
		{"loopback with a token", "127.0.0.1:80", &Server{Token: token}, bearer(token), "any.name", "*"},
		{"everywhere, nothing said", "0.0.0.0:80", &Server{}, nil, "10.0.0.1", health},
		{"everywhere, IPv6", "[::]:80", &Server{}, nil, "10.0.0.1", health},
		{"a pretended token where there is none", "0.0.0.0:80", &Server{}, bearer(""), "10.0.0.1", health},
		{"an address of the network", "192.168.1.7:80", &Server{}, nil, "192.168.1.7", health},
		{"everywhere, token by Bearer", "0.0.0.0:80", &Server{Token: token}, bearer(token), "console.example", "*"},
		{"everywhere, token as a password", "0.0.0.0:80", &Server{Token: token}, basic("anna", token), "console.example", "*"},
		{"everywhere, wrong token", "0.0.0.0:80", &Server{Token: token}, bearer(token + "0"), "console.example", health},
		{"everywhere, no token", "0.0.0.0:80", &Server{Token: token}, bearer(""), "console.example", health},
		{"everywhere, the token as a user", "0.0.0.0:80", &Server{Token: token}, basic(token, ""), "console.example", health},
		{"metrics open", "0.0.0.0:80", &Server{MetricsOpen: true}, nil, "10.0.0.1", health + " /metrics"},
		{"metrics open beside a token", "0.0.0.0:80", &Server{MetricsOpen: true, Token: token}, nil, "10.0.0.1", health + " /metrics"},
		{"said to be insecure", "0.0.0.0:80", &Server{Insecure: true}, nil, "console.example", "*"},
		{"a token outweighs insecure", "0.0.0.0:80", &Server{Insecure: true, Token: token}, nil, "console.example", health},
	} {
		s := c.server
		s.Listen, s.Gatherer = c.listen, prometheus.NewRegistry()
		s.init()
		addr, err := net.ResolveTCPAddr("tcp", c.listen)
		if err != nil {
			t.Fatal(err)
		}
		s.at = s.door(addr)
		h := s.handler()
		for _, path := range everyPath {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // of the streams that are let through
			r := httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil)
			r.Host = c.host
			if c.auth != nil {
				c.auth(r)
			}
			w := httptest.NewRecorder()
			if path != "/api/status/stream" || c.open != "*" { // which a recorder cannot carry
				h.ServeHTTP(w, r)
			}
			cancel()
			refused := w.Code == 401 || w.Code == 403 || w.Code == 421
			bare, _, _ := strings.Cut(path, "?")
			want := c.open == "*" || strings.Contains(" "+c.open+" ", " "+bare+" ")
			if refused == want {
				t.Errorf("%s: %s answers %d %s; let through should be %v", c.name, path, w.Code, w.Body, want)
			}
			if w.Code == 401 && !strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "Basic ") {
				t.Errorf("%s: %s: a browser is not told to ask for the token", c.name, path)
			}
			if strings.Contains(w.Body.String(), token) {
				t.Errorf("%s: %s says the token", c.name, path)
			}
		}
	}
}

func bearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

func basic(user, password string) func(*http.Request) {
	return func(r *http.Request) { r.SetBasicAuth(user, password) }
}

func TestShortTokensAreRefused(t *testing.T) {
	s := &Server{Listen: freePort(t), Token: "hunter2"}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "16") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a token of 7 bytes: %v", err)
	}
}

// Who opens connections and says nothing, or says it slowly, is cut off; meanwhile others are served, and beyond the
// limit connections wait instead of taking the process's file descriptors.
func TestSlowAndMany(t *testing.T) {
	s := &Server{}
	base := serve(t, s)
	addr := strings.TrimPrefix(base, "http://")
	var idle []net.Conn
	for range connectionsMax - 8 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		idle = append(idle, c)
	}
	fmt.Fprintf(idle[0], "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
	fmt.Fprintf(idle[1], "GET / HTTP/1.1\r\nHost: localhost\r\nX-Large: %s\r\n\r\n", strings.Repeat("x", 64<<10))
	answer, err := bufio.NewReader(idle[1]).ReadString('\n')
	if err == nil && !strings.Contains(answer, " 431 ") {
		t.Errorf("a header of 64 KB is answered %q", answer)
	}
	if status, _, _ := get(t, base+"/healthz"); status != 200 {
		t.Errorf("beside %d idle connections: %d", len(idle), status)
	}
	for _, c := range []net.Conn{idle[0], idle[2]} {
		if err := c.SetReadDeadline(time.Now().Add(15 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); err != nil {
			if e, ok := err.(net.Error); ok && e.Timeout() {
				t.Error("a client that does not finish its header is kept for more than 15 s")
			}
		}
	}
}
