package console

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// policy lets the page load its own files and talk to its own server, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"

// guard lets through what a console needs: GET, from a page of its own, by whoever may.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "the console only answers GET", http.StatusMethodNotAllowed)
		case r.Header.Get("Sec-Fetch-Site") == "cross-site" && r.Header.Get("Sec-Fetch-Mode") != "navigate":
			http.Error(w, "another site's page may not read the console", http.StatusForbidden)
		default:
			why, status := s.admits(r)
			if why == "" {
				next.ServeHTTP(w, r)
				return
			}
			if status == http.StatusUnauthorized {
				h.Set("WWW-Authenticate", `Basic realm="hearthline", charset="UTF-8"`)
			}
			http.Error(w, why, status)
		}
	})
}

// knows checks the Host header. A web page can make its own name resolve to this machine and so have a browser ask
// us on its behalf (DNS rebinding), but the browser then sends that name. An IP address cannot be rebound.
func (s *Server) knows(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return true
	}
	if name == "localhost" {
		return true
	}
	listen, _, _ := net.SplitHostPort(s.Listen)
	return name != "" && strings.EqualFold(name, listen)
}

// printable keeps an echo of a header short and plain.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, s)
	return `"` + s[:min(len(s), 100)] + `"`
}

// trailerMax bounds what a trailer says of an error, bytes.
const trailerMax = 1000

// trailer is an error as the value of a header: a line without control characters, which RFC 9110 (section 5.5) forbids there.
func trailer(err error) string {
	s := strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return ' '
		}
		return r
	}, err.Error())
	return strings.ToValidUTF8(s[:min(len(s), trailerMax)], "")
}
