package simulator

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// oracle reads a packet with the codec of another implementation.
func oracle(t *testing.T, version byte, b []byte) packets.Packet {
	t.Helper()
	r := bufio.NewReader(bytes.NewReader(b))
	var pk packets.Packet
	first, err := r.ReadByte()
	must(t, err)
	must(t, pk.FixedHeader.Decode(first))
	n, _, err := packets.DecodeLength(r)
	must(t, err)
	pk.FixedHeader.Remaining = n
	pk.ProtocolVersion = version
	body, err := io.ReadAll(r)
	must(t, err)
	if len(body) != n {
		t.Fatalf("remaining length %d, body %d", n, len(body))
	}
	switch pk.FixedHeader.Type {
	case packets.Connect:
		must(t, pk.ConnectDecode(body))
	case packets.Publish:
		must(t, pk.PublishDecode(body))
	}
	return pk
}

func TestWhatIsWritten(t *testing.T) {
	for _, version := range []byte{version311, version5} {
		pk := oracle(t, version, appendConnect(nil, version, 60, "home-1", "user", "päss"))
		if c := pk.Connect; pk.ProtocolVersion != version || string(c.ProtocolName) != "MQTT" || c.Keepalive != 60 || c.ClientIdentifier != "home-1" ||
			string(c.Username) != "user" || string(c.Password) != "päss" || !c.Clean || c.WillFlag {
			t.Errorf("CONNECT is read as %+v", pk)
		}
		if version == version5 && pk.Properties.MaximumPacketSize != packetMax {
			t.Errorf("maximum packet size %d", pk.Properties.MaximumPacketSize)
		}
		for _, size := range []int{0, 1, 100, 127, 128, 16383, 16384, 2097152} {
			payload := bytes.Repeat([]byte{'x'}, size)
			pk := oracle(t, version, append(appendPublishHead(nil, version, size%2 == 1, "a/b", 65535, size), payload...))
			if pk.TopicName != "a/b" || pk.PacketID != 65535 || pk.FixedHeader.Qos != 1 || pk.FixedHeader.Dup != (size%2 == 1) || pk.FixedHeader.Retain || !bytes.Equal(pk.Payload, payload) {
				t.Errorf("PUBLISH of %d bytes is read as %+v", size, pk.FixedHeader)
			}
		}
	}
}

// TestWhatIsRead gives packets of the other implementation, byte by byte.
func TestWhatIsRead(t *testing.T) {
	v5 := func(p packets.Packet) packets.Packet { p.ProtocolVersion = version5; return p }
	encode := func(p packets.Packet) []byte {
		var b bytes.Buffer
		var err error
		switch p.FixedHeader.Type {
		case packets.Connack:
			err = p.ConnackEncode(&b)
		case packets.Puback:
			err = p.PubackEncode(&b)
		case packets.Disconnect:
			err = p.DisconnectEncode(&b)
		}
		must(t, err)
		return b.Bytes()
	}
	for name, c := range map[string]struct {
		packet packets.Packet
		want   answer
	}{
		"connack 3.1.1": {packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}, ReasonCode: 5}, answer{code: 5, keepAlive: -1}},
		"connack 5": {v5(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}, Properties: packets.Properties{
			ReceiveMaximum: 3, ServerKeepAlive: 30, ServerKeepAliveFlag: true, AssignedClientID: "x", TopicAliasMaximum: 7, MaximumPacketSize: 1 << 20,
			User: []packets.UserProperty{{Key: "a", Val: "b"}}}}), answer{receiveMax: 3, keepAlive: 30}},
		"puback 3.1.1":   {packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: 258}, answer{id: 258, keepAlive: -1}},
		"puback 5 short": {v5(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: 9}), answer{id: 9, keepAlive: -1}},
		"puback 5 why": {v5(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: 9, ReasonCode: 0x99,
			Properties: packets.Properties{ReasonString: "no"}}), answer{id: 9, code: 0x99, why: "no", keepAlive: -1}},
		"disconnect 5": {v5(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ReasonCode: 0x8b}), answer{code: 0x8b, keepAlive: -1}},
	} {
		var in inbox
		var got *answer
		for _, b := range encode(c.packet) {
			if got != nil {
				t.Errorf("%s: bytes after the packet", name)
			}
			in.space()[0] = b
			in.end++
			if p, ok, err := in.next(); err != nil {
				t.Fatalf("%s: %v", name, err)
			} else if ok {
				a, err := p.read(c.packet.ProtocolVersion)
				must(t, err)
				got = &a
			}
		}
		if got == nil || *got != c.want {
			t.Errorf("%s is read as %+v, want %+v", name, got, c.want)
		}
	}
}

// FuzzInbox: whatever a server sends, it is packets or a broken protocol, however it is cut, and takes bounded memory.
func FuzzInbox(f *testing.F) {
	f.Add([]byte{0x20, 2, 0, 0, 0x40, 2, 0, 1, 0xd0, 0}, byte(5), uint8(3))
	f.Add([]byte{0x40, 8, 0, 9, 0x99, 4, 0x1f, 0, 1, 'x', 0xe0, 1, 0x8b}, byte(5), uint8(1))
	f.Add([]byte{0x20, 0xff, 0xff, 0xff, 0xff, 1}, byte(4), uint8(2))
	f.Add([]byte{0x20, 13, 0, 0, 10, 0x26, 0, 1, 'a', 0, 1, 'b', 0x21, 0, 0}, byte(5), uint8(200))
	f.Fuzz(func(t *testing.T, b []byte, version byte, step uint8) {
		var in inbox
		packetsRead := 0
		for len(b) > 0 {
			n := copy(in.space(), b[:min(len(b), int(step)+1)])
			if n == 0 {
				t.Fatal("no space to read to")
			}
			in.end += n
			b = b[n:]
			for {
				p, ok, err := in.next()
				if err != nil {
					if !errors.Is(err, errProtocol) {
						t.Fatal(err)
					}
					return
				}
				if !ok {
					break
				}
				packetsRead++
				if a, err := p.read(version); err == nil {
					_ = a.words()
				} else if !errors.Is(err, errProtocol) {
					t.Fatal(err)
				}
			}
			if len(in.buf) > 2*packetMax {
				t.Fatalf("%d bytes are held", len(in.buf))
			}
		}
	})
}
