package ingest

import (
	"errors"
	"net/http"

	"hearthline/ingest/reason"
	"hearthline/ingest/websocket"
	"hearthline/ingest/wire"
)

// mqttPath is where MQTT is spoken over WebSocket, on the HTTP door.
const mqttPath = "/mqtt"

// serveWebSocket makes a request a client of MQTT (version 5, section 6), which the loop drives like any other: neither
// net/http nor a goroutine holds it any more.
func (g *Gateway) serveWebSocket(rw http.ResponseWriter, r *http.Request) {
	if g.draining() {
		g.busy("the gateway is going down", reason.Draining).write(rw)
		return
	}
	door := &websocket.Door{Protocol: "mqtt", Origins: g.WebSocketOrigins, Timeout: g.WriteTimeout}
	c, early, err := door.Upgrade(rw, r)
	var no *websocket.Refused
	if errors.As(err, &no) {
		if no.Status == http.StatusUpgradeRequired {
			rw.Header().Set("Upgrade", "websocket")
			rw.Header().Set("Connection", "Upgrade")
		}
		g.refuseRequest(no.Status, "websocket", reason.Protocol, no.Why).write(rw)
		return
	}
	if err != nil {
		g.count.refused[reason.Protocol].Add(1)
		g.Logger.Debug("gateway: no WebSocket", "from", r.RemoteAddr, "err", err)
		return
	}
	w, ok := c.NetConn().(*wire.Wire)
	if !ok { // only in a test that serves handler by itself
		c.Close()
		return
	}
	client := g.newConnection(c, w, &g.count.webDoor)
	stream := &websocket.Stream{In: client, Out: client.link, BytesMax: g.packetMax(), Early: early}
	client.link.Frame = stream
	w.Leave()
	g.tasks.Go(func() { g.loop.Serve(client.link, stream) })
}
