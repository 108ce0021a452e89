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
	"golang.org/x/net/http2"

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

// Serve starts both doors.
func (g *Gateway) Serve(doors *conc.WaitGroup, mqtt, web net.Listener) *http.Server {
	if mqtt != nil {
		doors.Go(func() {
			g.accept(mqtt, g.mqttTLS, g.serveMQTT)
		})
	}
	if web == nil {
		return nil
	}
	server := &http.Server{
		Handler:           g.handler(),
		TLSConfig:         g.webTLS.now.Load().Clone(), // for its protocols: accept shakes hands
		ReadHeaderTimeout: g.ConnectTimeout,
		ReadTimeout:       g.PacketTimeout,
		WriteTimeout:      g.PacketTimeout + g.StoreTimeout + g.WriteTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 64},
		ErrorLog:          log.New(quiet{g.Logger}, "", 0),
	}
	// HTTP/2 of golang.org/x/net, whose version go.mod says: that within net/http is as old as whoever builds this has let Go
	// become, and strangers have stopped servers by it (GO-2026-6617).
	//lint:ignore SA1019 what is to be used instead is the HTTP/2 within net/http
	if err := http2.ConfigureServer(server, nil); err != nil {
		g.Logger.Error("gateway: HTTP/2 is that of Go itself", "error", err) // over ciphers that it cannot have, which ours are not
	}
	shaken := newHanded(web.Addr())
	doors.Go(func() {
		g.accept(web, g.webTLS, func(c *tls.Conn, w *wire.Wire) {
			from := c.RemoteAddr().String()
			w.Mode = wire.WireBlocking
			w.Closed = make(chan struct{})
			select {
			case shaken.conns <- c:
				<-w.Closed // counted as open until net/http has closed it
			case <-shaken.done:
				c.Close()
			}
			if !w.Left { // a WebSocket is counted until its session ends
				g.closed(from)
				g.count.webDoor.open.Add(-1)
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
	s := g.newConnection(c, w, &g.count.mqttDoor)
	g.loop.Serve(s.link, s)
}

// newConnection is a client that has not said anything yet.
func (g *Gateway) newConnection(c *tls.Conn, w *wire.Wire, door *listenerCounters) *connection {
	l := &wire.Link{Tls: c, Wire: w, Tasks: &g.tasks, BytesMax: g.OutboundBytesMax, Timeout: g.WriteTimeout}
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		host = c.RemoteAddr().String()
	}
	return &connection{g: g, door: door, link: l, from: host, lastPacket: time.Since(epoch)}
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
		err := g.door.Load()
		err = errors.Join(err, g.loadTLS(), g.loadHooks(), g.clock.save(g.Clock))
		g.evictGone(g.Now())
		g.gate.sweep(time.Now())
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
