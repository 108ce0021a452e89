package ingest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/flow/secret"
	"hearthline/ingest/identity"
	"hearthline/ingest/mqtt"
	"hearthline/ingest/wire"
)

// listenBoth opens the doors. An address in use is the commonest fault: the error says which setting to change.
func (g *Gateway) listenBoth() (mqtt, web net.Listener, err error) {
	if mqtt, err = listenOn("mqtt", g.MQTT); err != nil {
		return nil, nil, err
	}
	if web, err = listenOn("http", g.HTTP); err != nil {
		if mqtt != nil {
			mqtt.Close()
		}
		return nil, nil, err
	}
	return mqtt, web, nil
}

func listenOn(setting, addr string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	// TCP keep-alive finds peers that are gone without a word; MQTT's own comes on top.
	lc := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 2 * time.Minute, Interval: 30 * time.Second, Count: 4}}
	ln, err := lc.Listen(context.Background(), "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s: %s is in use; stop what uses it, or set %s to another address: %w", setting, addr, setting, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: listen on %q: %w", setting, addr, err)
	}
	return ln, nil
}

func address(ln net.Listener) net.Addr {
	if ln == nil {
		return nil
	}
	return ln.Addr()
}

func (g *Gateway) tlsConfig(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     protocols,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return g.certificate.Load(), nil },
	}
}

// Serve starts both doors.
func (g *Gateway) Serve(doors *conc.WaitGroup, mqtt, web net.Listener) *http.Server {
	if mqtt != nil {
		doors.Go(func() {
			g.accept(mqtt, g.tlsConfig("mqtt"), g.serveMQTT)
		})
	}
	if web == nil {
		return nil
	}
	server := &http.Server{
		Handler:           g.handler(),
		TLSConfig:         g.tlsConfig("h2", "http/1.1"),
		ReadHeaderTimeout: g.ConnectTimeout,
		ReadTimeout:       g.PacketTimeout,
		WriteTimeout:      g.PacketTimeout + g.StoreTimeout + g.WriteTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 64},
		ErrorLog:          log.New(quiet{g.Logger}, "", 0),
	}
	shaken := newHanded(web.Addr())
	doors.Go(func() {
		g.accept(web, server.TLSConfig, func(c *tls.Conn, w *wire.Wire) {
			w.Mode = wire.WireBlocking
			w.Closed = make(chan struct{})
			select {
			case shaken.conns <- c:
				<-w.Closed // counted as open until net/http has closed it
			case <-shaken.done:
				c.Close()
			}
			if !w.Left { // a WebSocket is counted until its session ends
				g.count.sockets.Add(-1)
			}
		})
	})
	doors.Go(func() { server.Serve(shaken) })
	return server
}

// quiet passes what net/http has to say of single connections to the debug log.
type quiet struct{ to *slog.Logger }

func (q quiet) Write(p []byte) (int, error) {
	q.to.Debug("gateway: http", "says", string(p))
	return len(p), nil
}

// serveMQTT hands a connection over to the loop, until connection.End.
func (g *Gateway) serveMQTT(c *tls.Conn, w *wire.Wire) {
	s := g.newConnection(c, w)
	g.loop.Serve(s.link, s)
}

// newConnection is a client that has not said anything yet.
func (g *Gateway) newConnection(c *tls.Conn, w *wire.Wire) *connection {
	l := &wire.Link{Tls: c, Wire: w, Tasks: &g.tasks, BytesMax: g.OutboundBytesMax, Timeout: g.WriteTimeout}
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		host = c.RemoteAddr().String()
	}
	return &connection{g: g, link: l, from: host, lastPacket: time.Since(epoch)}
}

// reloadEvery is how often the credentials and certificate files are looked at.
const reloadEvery = time.Second

// reload reads the files again when they change, and keeps the clock, until the gateway drains. What cannot be read leaves what was read
// before in force.
func (g *Gateway) reload() {
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-g.stop:
			return
		case <-tick.C:
		}
		_, err := g.door.Load()
		err = errors.Join(err, g.loadCertificate(), g.loadHooks(), g.clock.save(g.Clock))
		g.evictGone(time.Now())
		said := ""
		if err != nil {
			said = err.Error()
			if said != last {
				g.count.reloadErrors.Add(1)
				g.Logger.Error("gateway: a file cannot be read or written; what was read before stays in force", "err", err)
			}
		}
		last = said
	}
}

// evictGone ends the connections of identities that are no longer valid.
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
	g.connectionsMu.Unlock()
	for _, x := range out {
		x.c.evict(mqtt.CodeNotAuthorized, x.why.Error())
	}
}

func (g *Gateway) loadCertificate() error {
	mark, err := identity.MarkOf(g.Certificate)
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if mark == g.certMark {
		return nil
	}
	if err := secret.Private(g.Key); err != nil {
		return fmt.Errorf("key: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(g.Certificate, g.Key)
	if err != nil {
		return fmt.Errorf("certificate %s, key %s: %w", g.Certificate, g.Key, err)
	}
	g.certificate.Store(&cert)
	g.certMark = mark
	return nil
}
