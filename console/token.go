package console

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"strings"
)

// TokenBytesMin is the shortest token that is taken: it is guessed at without a limit.
const TokenBytesMin = 16

// CheckToken says whether a token is one.
func CheckToken(token string) error {
	if token != "" && len(token) < TokenBytesMin {
		return fmt.Errorf("the console's token has %d bytes; want at least %d (openssl rand -hex 32 makes one)", len(token), TokenBytesMin)
	}
	return nil
}

// door is who may see what.
type door int

const (
	doorShut    door = iota // shut but for health: others reach it, and nothing says who may
	doorToken               // a token opens it
	doorNames               // this machine alone reaches it, so it asks for nothing but a name that no other site can have
	doorOpen                // it is said to be open
	doorMetrics             // open for /metrics, shut for the rest
)

func (s *Server) door(listener net.Addr) door {
	switch tcp, ok := listener.(*net.TCPAddr); {
	case s.Token != "":
		return doorToken
	case s.Insecure:
		return doorOpen
	case ok && tcp.IP.IsLoopback():
		return doorNames
	case s.MetricsOpen:
		return doorMetrics
	}
	return doorShut
}

// admits says why a request is refused, "" if it is not. Health is for whoever asks: those who ask (a kubelet, a load
// balancer) have no token, and learn no more than whether to come.
func (s *Server) admits(r *http.Request) (why string, status int) {
	switch path := r.URL.Path; {
	case s.at == doorNames && !s.knows(r.Host):
		return "this console is not called " + printable(r.Host) + "; use its IP address or localhost", http.StatusMisdirectedRequest
	case path == "/healthz" || path == "/readyz" || s.at == doorNames || s.at == doorOpen:
	case path == "/metrics" && s.MetricsOpen:
	case s.at == doorToken && !s.tokenOf(r):
		return "the console's token is needed: as the password of any user, or as Authorization: Bearer TOKEN", http.StatusUnauthorized
	case s.at == doorMetrics || s.at == doorShut:
		return "others than this machine reach this address, so it needs a token to show more than its health: set console.token_env or console.token_file in pipeline.yaml",
			http.StatusForbidden
	}
	return "", 0
}

// tokenOf says whether a request has the token. Digests are compared, so that neither length nor content tells in the time.
func (s *Server) tokenOf(r *http.Request) bool {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		if _, given, ok = r.BasicAuth(); !ok {
			return false
		}
	}
	want, got := sha256.Sum256([]byte(s.Token)), sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1
}
