package ingest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

func TestReadCredentials(t *testing.T) {
	hash := HashPassword("secret")
	good := "- {user: u, home: h, hash: '" + hash + "'}\n"
	for _, c := range []struct{ name, text, err string }{
		{"YAML", good, ""},
		{"JSON lines", `{"user":"u","home":"h","hash":"` + hash + `","devices":["d"],"role":"app"}` + "\n" + `{"user":"v","home":"h","hash":"` + hash + `"}`, ""},
		{"empty", "", ""},
		{"unknown key", strings.Replace(good, "home", "hoem", 1), "hoem"},
		{"unknown key in JSON", `{"user":"u","homes":"h"}`, "homes"},
		{"twice", good + good, "given twice"},
		{"no home", "- {user: u, hash: '" + hash + "'}", "home"},
		{"home with a slash", "- {user: u, home: a/b, hash: '" + hash + "'}", "home"},
		{"no user", "- {home: h, hash: '" + hash + "'}", "user"},
		{"role", strings.Replace(good, "user: u", "user: u, role: king", 1), "role"},
		{"plain password", "- {user: u, home: h, hash: secret}", "argon2id"},
		{"bcrypt", "- {user: u, home: h, hash: $2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy}", "argon2id"},
		{"too dear", strings.Replace(good, "m=19456", "m=9999999", 1), "out of range"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ReadCredentials(strings.NewReader(c.text))
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("%v; want %q", err, c.err)
			}
		})
	}
}

func TestDoor(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir, "c.yaml", "- {user: anna, home: h1, hash: '"+HashPassword("secret")+"'}\n")
	d := newDoor(file, New().limiters, func() {})
	if _, err := d.load(); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	d.now = func() time.Time { return now }
	admit := func(user, password string) error { _, err := d.admit(user, password, "192.0.2.1"); return err }
	if err := admit("anna", "secret"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for range 1000 {
		if err := admit("anna", "secret"); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("1,000 logins with a password known to be right took %s", took)
	}
	for i := range failureBurst {
		if err := admit([]string{"anna", "nobody"}[i%2], "wrong"); err != errCredentials {
			t.Fatal(i, err)
		}
	}
	if err := admit("anna", "wrong"); err != errAttempts {
		t.Error("an address may guess on:", err)
	}
	if err := admit("anna", "secret"); err != nil {
		t.Error("who is known to be right suffers for others of the same address:", err)
	}
	if _, err := d.admit("anna", "wrong", "192.0.2.2"); err != errCredentials {
		t.Error("another address suffers:", err)
	}
	now = now.Add(failureEvery)
	if err := admit("anna", "wrong"); err != errCredentials {
		t.Error("it may not try again later:", err)
	}
	t.Run("the right password of another hash is not remembered", func(t *testing.T) {
		write(t, dir, "c.yaml", "- {user: anna, home: h1, hash: '"+HashPassword("changed!")+"'}\n")
		os.Chtimes(file, time.Time{}, time.Now().Add(time.Hour))
		gone, err := d.load()
		if err != nil || len(gone) != 1 {
			t.Fatal(gone, err)
		}
		if _, err := d.admit("anna", "secret", "192.0.2.3"); err != errCredentials {
			t.Error(err)
		}
	})
}

func TestRecentForgets(t *testing.T) {
	r := newRecent[int, int](10)
	for i := range 1000 {
		r.put(i, i)
		r.get(0) // what is used stays
		if n := len(r.young) + len(r.old); n > 10 {
			t.Fatalf("%d entries", n)
		}
	}
	if _, ok := r.get(0); !ok {
		t.Error("what is used was forgotten")
	}
	if _, ok := r.get(500); ok {
		t.Error("what is not used was kept")
	}
}

func TestRevocationTakesEffect(t *testing.T) {
	r := newRig(t, nil)
	anna, bert := r.connect(5, "anna", "a"), r.connect(5, "bert", "b")
	f, err := os.Open(r.Credentials)
	if err != nil {
		t.Fatal(err)
	}
	all, err := ReadCredentials(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for _, c := range all {
		if c.User != "anna" {
			text += "- {user: " + c.User + ", home: " + c.Home + ", hash: '" + c.Hash + "', role: " + c.Role + ", devices: [" + strings.Join(c.Devices, ",") + "]}\n"
		}
	}
	write(t, r.dir, "credentials.yaml", "- {broken")
	eventually(t, "a file that cannot be read is counted", func() bool { return r.Stats().ReloadErrors == 1 })
	write(t, r.dir, "credentials.yaml", text)
	if code := anna.wantEnd(); code != 0x87 {
		t.Errorf("%#x; want 0x87", code)
	}
	bert.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	bert.want(packets.Pingresp)
	p := r.dial()
	p.send(connectPacketOf(r, "anna", "a"))
	if ack := p.want(packets.Connack); ack.ReasonCode != 0x86 {
		t.Errorf("%#x", ack.ReasonCode)
	}
}

func TestDevelopmentFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	certs, err := DevCertificates(dir)
	if err != nil {
		t.Fatal(err)
	}
	file, passwords, err := DevCredentials(dir, DevUser{User: "a", Home: "h1"})
	if err != nil || len(passwords["a"]) < 20 {
		t.Fatal(err, passwords)
	}
	for _, secret := range []string{certs.Key, filepath.Join(dir, "ca-key.pem"), file, filepath.Join(dir, "passwords.json")} {
		if st, err := os.Stat(secret); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", secret, st.Mode(), err)
		}
	}
	read := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	ca, server := read(certs.CA), read(certs.Certificate)
	if _, err := DevCertificates(dir); err != nil || read(certs.CA) != ca || read(certs.Certificate) != server {
		t.Error("a restart changed the certificates", err)
	}
	_, again, err := DevCredentials(dir, DevUser{User: "a", Home: "h1"}, DevUser{User: "b", Home: "h2", Role: RoleApp})
	if err != nil || again["a"] != passwords["a"] || again["b"] == "" {
		t.Error("a restart changed a password", err)
	}
	d := newDoor(file, New().limiters, func() {})
	if _, err := d.load(); err != nil {
		t.Fatal(err)
	}
	for user, password := range again {
		if _, err := d.admit(user, password, "x"); err != nil {
			t.Error(user, err)
		}
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca))
	block, _ := pem.Decode([]byte(server))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Error(name, err)
		}
	}
	t.Run("renewal", func(t *testing.T) {
		caCert, caKey, err := readPair(certs.CA, filepath.Join(dir, "ca-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		old := certificate("localhost", devRenew-time.Hour)
		if _, _, err := makePair(old, caCert, caKey, certs.Certificate, certs.Key); err != nil {
			t.Fatal(err)
		}
		if _, err := DevCertificates(dir); err != nil {
			t.Fatal(err)
		}
		pair, err := tls.LoadX509KeyPair(certs.Certificate, certs.Key)
		if err != nil || time.Until(pair.Leaf.NotAfter) < devRenew || read(certs.CA) != ca {
			t.Error("it was not renewed, or its authority was", err)
		}
	})
}

func TestSettings(t *testing.T) {
	for _, c := range []struct {
		set func(*Gateway)
		err string
	}{
		{func(g *Gateway) { g.Certificate = "" }, "certificate is not set"},
		{func(g *Gateway) { g.RowsMax = 0 }, "rows_max"},
		{func(g *Gateway) { g.DrainTimeout = 0 }, "drain_timeout"},
		{func(g *Gateway) { g.Publisher = nil }, "publisher"},
		{func(g *Gateway) { g.MQTT, g.HTTP = "", "" }, "neither"},
		{func(g *Gateway) { g.Credentials = "/nonexistent" }, "credentials"},
	} {
		g := New()
		g.Certificate, g.Key, g.Credentials, g.Publisher, g.Partitions = "c", "k", "f", newRoad(), 1
		c.set(g)
		if err := g.Run(t.Context()); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%v; want %q", err, c.err)
		}
	}
	t.Run("a clock that is two days behind", func(t *testing.T) {
		r := newRig(t, nil)
		g := New()
		g.MQTT, g.Certificate, g.Key, g.Credentials, g.Publisher, g.Partitions = "127.0.0.1:0", r.Certificate, r.Key, r.Credentials, newRoad(), 1
		g.Clock = write(t, r.dir, "clock", strconv.FormatInt(time.Now().Add(48*time.Hour).UnixMicro(), 10))
		if err := g.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "set the clock right") {
			t.Error(err)
		}
	})
	t.Run("busy port", func(t *testing.T) {
		r := newRig(t, nil)
		g := New()
		g.MQTT, g.Certificate, g.Key, g.Credentials, g.Publisher, g.Partitions = r.at.MQTT.String(), r.Certificate, r.Key, r.Credentials, newRoad(), 1
		if err := g.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), "set mqtt") {
			t.Error(err)
		}
	})
}

func TestConnectionLimit(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.ConnectionsMax = 2 })
	a := r.connect(5, "anna", "a")
	r.connect(5, "anna", "b")
	if c, err := tls.Dial("tcp", r.at.MQTT.String(), r.tls()); err == nil {
		c.Close()
		t.Error("a third was let in")
	}
	a.conn.Close()
	eventually(t, "there is room again", func() bool { return r.Stats().Sockets == 1 })
	r.connect(5, "anna", "c")
	if r.Stats().Refused["connections"] != 1 {
		t.Error(r.Stats().Refused)
	}
}

func TestMessageRate(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.MessagesPerSecond, g.MessagesBurst = 20, 5 })
	p := r.connect(5, "anna", "a")
	start := time.Now()
	for id := range uint16(15) {
		p.send(publishOf(lampTopic, reading, 1, id+1))
	}
	for range 15 {
		p.want(packets.Puback)
	}
	if took := time.Since(start); took < 400*time.Millisecond {
		t.Errorf("15 messages at 5 + 20/s took %s", took)
	}
}
