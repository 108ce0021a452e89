package ingest

import (
	"crypto/tls"
	"net"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// TestWhatTheDoorsCount: by listener and by route, and nothing is left open when all have gone.
func TestWhatTheDoorsCount(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.ConnectionsMax = 3 })
	p := r.connect(5, "anna", "a")
	p.send(publishOf(lampTopic, reading, 1, 1))
	p.want(packets.Puback)
	for _, body := range []string{deviceReading, deviceReading, "{"} {
		r.post("anna", mediaJSON, []byte(body), key(map[bool]string{true: "k", false: "other"}[body == deviceReading])...)
		eventually(t, "its connection is closed", func() bool { return r.Stats().Listeners["http"].Open == 0 })
	}
	c, err := net.Dial("tcp", r.at.MQTT.String())
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("no TLS"))
	c.Close()
	eventually(t, "the handshake has failed", func() bool { return r.Stats().Listeners["mqtt"].HandshakesFailed == 1 })
	eventually(t, "the requests' connections are closed", func() bool { return r.Stats().Listeners["http"].Open == 0 })
	s := r.Stats()
	if l := s.Listeners["mqtt"]; l.Open != 1 || l.Accepted != 2 || l.Handshake.Count != 1 || l.Handshake.Sum <= 0 {
		t.Errorf("mqtt: %+v", l)
	}
	if l := s.Listeners["http"]; l.Accepted != 3 || l.Handshake.Count != 3 || l.HandshakesFailed != 0 {
		t.Errorf("http: %+v", l)
	}
	if a := s.Routes["/v1/telemetry"]; a.Answers[2] != 2 || a.Answers[4] != 1 || a.Time.Count != 3 || s.Repeated != 1 {
		t.Errorf("/v1/telemetry: %+v, %d repeated", a, s.Repeated)
	}
	var held []*tls.Conn
	for range 2 {
		c, err := tls.Dial("tcp", r.at.MQTT.String(), r.tls())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	if _, err := tls.Dial("tcp", r.at.MQTT.String(), r.tls()); err == nil {
		t.Error("a connection over the limit")
	}
	if l := r.Stats().Listeners["mqtt"]; l.Full != 1 {
		t.Errorf("%d over the limit; want 1", l.Full)
	}
	for _, c := range held {
		c.Close()
	}
	p.conn.Close()
	eventually(t, "nothing is open", func() bool { s := r.Stats(); return s.Listeners["mqtt"].Open == 0 && s.Sockets == 0 })
}
