// Package websocket carries a protocol of packets in the binary frames of WebSocket (RFC 6455): over it a browser
// speaks MQTT. It is a [wire.Handler] around another one, so that a connection costs little more than without.
//
// Compression is not offered. Frames and packets need not meet: a frame may hold several packets, a packet may come
// in several frames. Pings are answered; none are sent, since MQTT has its own.
package websocket

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gobwas/ws"
)

// Door is where WebSocket connections come in.
type Door struct {
	Protocol string        // the subprotocol, which the client must offer
	Origins  []string      // of web pages that may connect, besides those of the same host; "*" for all
	Timeout  time.Duration // of writing the answer to the handshake
}

// Refused is a request that is no handshake for this door. Nothing has answered it yet.
type Refused struct {
	Status int // of HTTP
	Why    string
}

func (r *Refused) Error() string { return r.Why }

// Upgrade takes a connection over from net/http, and answers the handshake. After an error that is not Refused, it
// is answered and closed. early is what the client sent with it.
func (d *Door) Upgrade(w http.ResponseWriter, r *http.Request) (c *tls.Conn, early []byte, err error) {
	protocols := strings.Join(r.Header.Values("Sec-Websocket-Protocol"), ",")
	switch {
	case r.ProtoMajor != 1:
		return nil, nil, &Refused{http.StatusHTTPVersionNotSupported, "a WebSocket begins with HTTP/1.1 here"}
	case !strings.EqualFold(r.Header.Get("Upgrade"), "websocket"):
		return nil, nil, &Refused{http.StatusUpgradeRequired, "this is for WebSocket, with the subprotocol " + d.Protocol}
	case !d.welcome(r):
		return nil, nil, &Refused{http.StatusForbidden, fmt.Sprintf("pages of %.100q may not connect here", r.Header.Get("Origin"))}
	case !slices.ContainsFunc(strings.Split(protocols, ","), func(p string) bool { return strings.TrimSpace(p) == d.Protocol }):
		return nil, nil, &Refused{http.StatusBadRequest, fmt.Sprintf("subprotocol %.100q; want %s", protocols, d.Protocol)}
	}
	upgrade := ws.HTTPUpgrader{Timeout: d.Timeout, Protocol: func(p string) bool { return p == d.Protocol }}
	conn, rw, _, err := upgrade.Upgrade(r, w)
	if err != nil {
		if conn != nil {
			conn.Close()
		}
		return nil, nil, fmt.Errorf("websocket handshake: %w", err)
	}
	c, ok := conn.(*tls.Conn)
	if !ok {
		conn.Close()
		return nil, nil, errors.New("websocket handshake: not over TLS")
	}
	if n := rw.Reader.Buffered(); n > 0 {
		b, _ := rw.Reader.Peek(n)
		early = bytes.Clone(b)
	}
	return c, early, nil
}

// welcome checks the page that a browser says it acts for. Other clients say none.
func (d *Door) welcome(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" || slices.Contains(d.Origins, "*") || slices.Contains(d.Origins, origin) {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && u.Scheme == "https" && strings.EqualFold(u.Host, r.Host)
}
