package ingest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// frame is a packet of a kind and flags with this body.
func frame(head byte, body ...byte) []byte { return append([]byte{head, byte(len(body))}, body...) }

// connectOf is the body of a CONNECT: a level, flags, properties (version 5) and what follows.
func connectOf(level, flags byte, props string, rest ...string) []byte {
	b := []byte{0, 4, 'M', 'Q', 'T', 'T', level, flags, 0, 60}
	if level == 5 {
		b = append(append(b, byte(len(props))), props...)
	}
	for _, r := range rest {
		b = append(append(b, 0, byte(len(r))), r...)
	}
	return frame(0x10, b...)
}

// TestClauses breaks the standard's normative statements one by one. Numbers are those of MQTT 5, appendix B; the same bytes
// without properties break MQTT 3.1.1.
func TestClauses(t *testing.T) {
	r := newRig(t, nil)
	v5, both := []byte{5}, []byte{4, 5}
	t.Run("CONNECT", func(t *testing.T) {
		for _, c := range []struct {
			clause, what string
			send         []byte
			connack      int // reason code of the CONNACK; -1: none, the connection is closed
		}{
			{"MQTT-3.1.0-1", "the first packet is no CONNECT", frame(0xc0), -1},
			{"MQTT-3.1.2-1", "protocol name", frame(0x10, append([]byte{0, 4, 'M', 'Q', 'T', 'X', 5, 2, 0, 60, 0}, 0, 0)...), -1},
			{"MQTT-3.1.2-2", "protocol level", connectOf(6, 2, "", "c"), 1}, // the version is not known: it is answered as 3.1.1
			{"MQTT-3.1.2-3", "reserved flag", connectOf(5, 3, "", "c"), 0x81},
			{"MQTT-3.1.2-11", "will QoS without a will", connectOf(5, 0b0000_1010, "", "c"), 0x81},
			{"MQTT-3.1.2-12", "will QoS 3", connectOf(5, 0b0001_1110, "", "c", "", "t", "p"), 0x81},
			{"MQTT-3.1.2-13", "will retain without a will", connectOf(5, 0b0010_0010, "", "c"), 0x81},
			{"MQTT-3.1.2-17", "a user name that is not there", connectOf(5, 0b1000_0010, "", "c"), 0x81},
			{"MQTT-3.1.3-1", "more than the payload", connectOf(5, 2, "", "c", "rest"), 0x81},
			{"MQTT-3.1.3-4", "a client id that is no UTF-8", connectOf(5, 2, "", "\xff"), 0x81},
			{"MQTT-1.5.4-1", "a surrogate", connectOf(5, 2, "", "\xed\xa0\x80"), 0x81},
			{"MQTT-1.5.4-2", "U+0000", connectOf(5, 2, "", "a\x00"), 0x81},
			{"3.1.2.11.3", "receive maximum 0", connectOf(5, 2, "\x21\x00\x00", "c"), 0x82},
			{"3.1.2.11.4", "maximum packet size 0", connectOf(5, 2, "\x27\x00\x00\x00\x00", "c"), 0x82},
			{"3.1.2.11.6", "request response information 2", connectOf(5, 2, "\x19\x02", "c"), 0x82},
			{"3.1.2.11.7", "request problem information 2", connectOf(5, 2, "\x17\x02", "c"), 0x82},
			{"3.1.2.11.10", "authentication data without a method", connectOf(5, 2, "\x16\x00\x01x", "c"), 0x82},
			{"MQTT-4.12.0-1", "an authentication method", connectOf(5, 2, "\x15\x00\x01x", "c"), 0x8c},
			{"3.1.2.11.2", "session expiry twice", connectOf(5, 2, "\x11\x00\x00\x00\x01\x11\x00\x00\x00\x01", "c"), 0x82},
			{"2.2.2.2", "a property of another packet", connectOf(5, 2, "\x18\x00\x00\x00\x01", "c"), 0x81},
			{"2.2.2.2", "a property that does not exist", connectOf(5, 2, "\x7e\x00", "c"), 0x81},
			{"MQTT-3.1.2-22", "3.1.1: a password without a user", connectOf(4, 0b0100_0010, "", "c", "p"), 3},
			{"MQTT-3.1.3-8", "3.1.1: no client id, and a session to keep", connectOf(4, 0b1100_0000, "", "", "anna", r.passwords["anna"]), 2},
		} {
			t.Run(c.clause+" "+c.what, func(t *testing.T) {
				p := r.dial()
				p.t = t
				p.write(c.send...)
				if c.connack < 0x80 {
					p.version = 4
				}
				if c.connack >= 0 {
					if ack := p.want(packets.Connack); int(ack.ReasonCode) != c.connack {
						t.Errorf("CONNACK %#x; want %#x", ack.ReasonCode, c.connack)
					}
				}
				p.wantEnd()
			})
		}
	})
	qos1 := func(props string) []byte { // a PUBLISH to a topic of the home, with properties
		b := append([]byte{0, 9}, "homes/h1/"...)
		b[1] = 10
		b = append(b, 'x', 0, 1, byte(len(props)))
		return frame(0x32, append(append(b, props...), 'x')...)
	}
	for _, c := range []struct {
		clause, what string
		versions     []byte
		send         []byte
		code         byte
	}{
		{"MQTT-3.1.0-2", "a second CONNECT", both, connectOf(5, 2, "", "c"), 0x82},
		{"MQTT-2.1.3-1", "flags of PINGREQ", both, frame(0xc1), 0x81},
		{"MQTT-2.1.3-1", "flags of PUBACK", both, frame(0x41, 0, 1), 0x81},
		{"MQTT-1.5.5-1", "a length of more bytes than needed", v5, frame(0x32, 0, 1, 'a', 0, 1, 0x80, 0x00), 0x81},
		{"MQTT-2.2.1-3", "PUBLISH without a packet id", both, frame(0x32, 0, 1, 'a', 0, 0, 0), 0x82},
		{"MQTT-2.2.1-3", "SUBSCRIBE without a packet id", both, frame(0x82, 0, 0, 0, 0, 1, 'a', 0), 0x82},
		{"MQTT-2.2.1-3", "UNSUBSCRIBE without a packet id", both, frame(0xa2, 0, 0, 0, 0, 1, 'a'), 0x82},
		{"MQTT-3.3.1-2", "DUP of QoS 0", both, frame(0x38, 0, 1, 'a', 0), 0x81},
		{"MQTT-3.3.1-4", "QoS 3", both, frame(0x36, 0, 1, 'a', 0, 1, 0), 0x81},
		{"MQTT-3.3.2-1", "a topic that is no UTF-8", both, frame(0x30, 0, 1, 0xff, 0), 0x81},
		{"MQTT-3.3.2-2", "a topic with a wildcard", both, frame(0x30, 0, 1, '#', 0), 0x90},
		{"MQTT-4.7.3-1", "an empty topic", both, frame(0x30, 0, 0, 0), 0x90},
		{"MQTT-3.3.2-8", "topic alias 0", v5, qos1("\x23\x00\x00"), 0x94},
		{"MQTT-3.3.2-9", "topic alias over the maximum", v5, qos1("\x23\x00\x11"), 0x94},
		{"MQTT-3.3.2-14", "a response topic with a wildcard", v5, qos1("\x08\x00\x01#"), 0x82},
		{"MQTT-3.3.4-6", "a subscription identifier of a client", v5, qos1("\x0b\x01"), 0x81},
		{"3.3.2.3.2", "payload format 2", v5, qos1("\x01\x02"), 0x82},
		{"3.3.2.3.3", "message expiry twice", v5, qos1("\x02\x00\x00\x00\x01\x02\x00\x00\x00\x01"), 0x82},
		{"MQTT-3.4.2-1", "a reason code that PUBACK has not", v5, frame(0x40, 0, 1, 0x01), 0x81},
		{"MQTT-3.5.2-1", "a reason code that PUBREC has not", v5, frame(0x50, 0, 1, 0x92), 0x81},
		{"MQTT-3.6.1-1", "flags of PUBREL", both, frame(0x60, 0, 1), 0x81},
		{"MQTT-3.6.2-1", "a reason code that PUBREL has not", v5, frame(0x62, 0, 1, 0x80), 0x81},
		{"MQTT-3.7.2-1", "a reason code that PUBCOMP has not", v5, frame(0x70, 0, 1, 0x80), 0x81},
		{"MQTT-3.8.1-1", "flags of SUBSCRIBE", both, frame(0x80, 0, 1, 0, 0, 1, 'a', 0), 0x81},
		{"MQTT-3.8.3-1", "a filter that is no UTF-8", both, frame(0x82, 0, 1, 0, 0, 1, 0xff, 0), 0x81},
		{"MQTT-3.8.3-2", "SUBSCRIBE without a filter", v5, frame(0x82, 0, 1, 0), 0x82},
		{"MQTT-3.8.3-2", "SUBSCRIBE without a filter", []byte{4}, frame(0x82, 0, 1), 0x82},
		{"MQTT-3.8.3-4", "no local of a shared subscription", v5, frame(0x82, append(append([]byte{0, 1, 0, 0, 19}, "$share/g/homes/h1/x"...), 4)...), 0x82},
		{"MQTT-3.8.3-5", "reserved bits of the options", v5, frame(0x82, 0, 1, 0, 0, 1, 'a', 0x40), 0x81},
		{"3.8.3.1", "QoS 3", both, frame(0x82, 0, 1, 0, 0, 1, 'a', 3), 0x82},
		{"3.8.3.1", "retain handling 3", v5, frame(0x82, 0, 1, 0, 0, 1, 'a', 0x30), 0x82},
		{"3.8.2.1.2", "subscription identifier 0", v5, frame(0x82, 0, 1, 2, 0x0b, 0, 0, 1, 'a', 0), 0x82},
		{"MQTT-3.10.1-1", "flags of UNSUBSCRIBE", both, frame(0xa0, 0, 1, 0, 0, 1, 'a'), 0x81},
		{"MQTT-3.10.3-2", "UNSUBSCRIBE without a filter", v5, frame(0xa2, 0, 1, 0), 0x82},
		{"MQTT-3.14.1-1", "flags of DISCONNECT", both, frame(0xe1), 0x81},
		{"MQTT-3.14.2-1", "a reason code that a client's DISCONNECT has not", v5, frame(0xe0, 0x8e), 0x81},
		{"3.14.2.2.2", "a session expiry where CONNECT had none", v5, frame(0xe0, 0, 5, 0x11, 0, 0, 0, 9), 0x82},
		{"3.14.2.2.5", "a server reference of a client", v5, frame(0xe0, 0, 4, 0x1c, 0, 1, 'x'), 0x81},
		{"MQTT-3.15.1-1", "flags of AUTH", v5, frame(0xf1), 0x81},
		{"4.12", "AUTH without a method in CONNECT", v5, frame(0xf0), 0x82},
		{"2.1.2", "packet type 0", both, frame(0x00), 0x81},
		{"2.1.2", "CONNACK of a client", both, frame(0x20, 0, 0), 0x82},
		{"2.1.2", "SUBACK of a client", both, frame(0x90, 0, 1, 0), 0x82},
		{"2.1.2", "UNSUBACK of a client", both, frame(0xb0, 0, 1), 0x82},
		{"2.1.2", "PINGRESP of a client", both, frame(0xd0), 0x82},
		{"2.1.2", "AUTH in 3.1.1", []byte{4}, frame(0xf0), 0x82},
		{"3.12", "a PINGREQ with a body", both, frame(0xc0, 0), 0x81},
	} {
		for _, version := range c.versions {
			t.Run(fmt.Sprintf("%s %s, v%d", c.clause, c.what, version), func(t *testing.T) {
				p := r.connect(version, "anna", "clauses")
				p.t = t
				p.write(c.send...)
				code := p.wantEnd()
				if version == 5 && code != c.code {
					t.Errorf("DISCONNECT %#x; want %#x", code, c.code)
				}
				if version == 4 && code != 0 {
					t.Error("a DISCONNECT, which 3.1.1 servers have not")
				}
			})
		}
	}
}

// TestRefusedFilters answers filters that cannot be subscribed to, one by one, and goes on.
func TestRefusedFilters(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range []struct {
		filter string
		code   byte
	}{
		{"homes/h1/#/x", 0x8f}, {"homes/h1/x#", 0x8f}, {"homes/h1/+x", 0x8f}, {"", 0x8f}, // MQTT-4.7.1-1, MQTT-4.7.1-2, MQTT-4.7.3-1
		{"$share/homes/h1/x", 0x87}, {"$share//homes/h1/x", 0x8f}, {"$share/g+/homes/h1/x", 0x8f}, {"$share/g/", 0x8f}, {"$share/g", 0x8f}, // MQTT-4.8.2-1, MQTT-4.8.2-2
		{"$share/g/homes/h2/x", 0x87}, {"homes/h2/x", 0x87}, {"#", 0x87}, {"$SYS/#", 0x87}, {"homes/h1/" + strings.Repeat("x", 2000), 0x8f},
		{"homes/h1/x", 1}, {"$share/g/homes/h1/+/#", 1},
	} {
		p := r.connect(5, "anna", "filters")
		p.send(subscribeOf(1, 1, c.filter))
		if ack := p.want(packets.Suback); ack.ReasonCodes[0] != c.code {
			t.Errorf("%.40q: %#x; want %#x", c.filter, ack.ReasonCodes[0], c.code)
		}
		p.conn.Close()
	}
}
