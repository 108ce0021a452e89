package ingest

import (
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// A cloud sends for several homes in one request: each row names its home, and is held to what may be sent there.
func TestRowsOfSeveralHomes(t *testing.T) {
	r := newRig(t, nil)
	body := strings.Join([]string{
		`{"home":"h1","device":"oven","metric":"m","value":1}`, `{"home":"h2","device":"lamp","metric":"m","value":2}`,
		`{"home":"h2","device":"oven","metric":"m","value":3}`, `{"home":"h3","device":"lamp","metric":"m","value":4}`,
		`{"device":"lamp","metric":"m","value":5}`, `{"home":"h1","device":"lamp","metric":"m","value":6}`}, "\n")
	status, answer, _ := r.post("cloud", mediaLines, []byte(body))
	if status != 200 || !strings.Contains(answer, `"accepted":3,"refused":3`) || strings.Count(answer, `"reason":"device"`) != 1 ||
		strings.Count(answer, `"reason":"home"`) != 1 || strings.Count(answer, `"reason":"missing"`) != 1 {
		t.Errorf("%d %s", status, answer)
	}
	got := map[string]float64{}
	for _, e := range r.road.events() {
		got[e.Home] += e.Value
	}
	if len(got) != 2 || got["h1"] != 7 || got["h2"] != 2 {
		t.Error(got)
	}
	if status, answer, _ := r.post("family", mediaLines, []byte(body)); status != 403 {
		t.Errorf("who may send none: %d %s", status, answer)
	}
}

// One connection sees the homes that it has a role in, and does there what the role may.
func TestOneConnectionOfSeveralHomes(t *testing.T) {
	r := newRig(t, nil)
	family, anna, bert := r.connect(5, "family", "phone"), r.connect(5, "anna", "a"), r.connect(5, "bert", "b")
	anna.send(subscribeOf(1, 1, "homes/h1/devices/+/commands"))
	anna.want(packets.Suback)
	family.send(subscribeOf(1, 0, "homes/h1/devices/+/state", "homes/h2/devices/+/state", "homes/h3/#", "homes/+/devices/+/state"))
	if ack := family.want(packets.Suback); string(ack.ReasonCodes) != "\x00\x00\x87\x87" {
		t.Errorf("SUBACK %x", ack.ReasonCodes)
	}
	for home, p := range map[string]*peer{"h1": anna, "h2": bert} {
		p.send(publishOf("homes/"+home+"/devices/lamp/state", "on in "+home, 0, 0))
		if m := family.want(packets.Publish); m.TopicName != "homes/"+home+"/devices/lamp/state" || string(m.Payload) != "on in "+home {
			t.Errorf("%s %q", m.TopicName, m.Payload)
		}
	}
	for id, c := range []struct {
		topic string
		code  byte
	}{
		{"homes/h1/devices/lamp/commands", 0}, {"homes/h2/devices/lamp/commands", 0x87}, {"homes/h3/devices/lamp/commands", 0x87}, {lampTopic, 0x87},
	} {
		family.send(publishOf(c.topic, `{}`, 1, uint16(id+1)))
		if ack := family.want(packets.Puback); ack.ReasonCode != c.code {
			t.Errorf("%s: PUBACK %#x; want %#x", c.topic, ack.ReasonCode, c.code)
		}
	}
	if m := anna.want(packets.Publish); m.TopicName != "homes/h1/devices/lamp/commands" {
		t.Error(m.TopicName)
	}
	family.conn.Close()
	eventually(t, "nothing of it is left", func() bool { return r.audience.Len() == 1 })
}
