package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"
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
		{"a key", "- {user: u, home: h, keys: ['" + HashKey("k") + "']}", ""},
		{"a key of two", "- {user: u, home: h, keys: ['" + HashKey("k") + "']}\n- {user: v, home: h, keys: ['" + HashKey("k") + "']}", "given twice"},
		{"a key as it is", "- {user: u, home: h, keys: [hl_secret]}", "sha256:"},
		{"a certificate of two", "- {user: u, home: h, certificate: c}\n- {user: v, home: h, certificate: c}", "given twice"},
		{"nothing to prove it by", "- {user: u, home: h}", "hash"},
		{"bcrypt", "- {user: u, home: h, hash: $2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy}", ""},
		{"half a bcrypt", "- {user: u, home: h, hash: $2a$10$N9qo8uLOickgx2ZMRZoMye}", "whole bcrypt"},
		{"a dear bcrypt", "- {user: u, home: h, hash: $2a$20$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy}", "cost of 20"},
		{"homes", "- {user: u, hash: '" + hash + "', homes: [{home: a}, {home: b, role: viewer}]}", ""},
		{"home and homes", strings.Replace(good, "user: u", "user: u, homes: [{home: a}]", 1), "not in both"},
		{"a home twice", "- {user: u, hash: '" + hash + "', homes: [{home: a}, {home: a, role: viewer}]}", "given twice"},
		{"templates", strings.Replace(good, "user: u", "user: u, publish: ['homes/{home}/users/{user}/{client}/+/#'], subscribe: ['homes/{home}/devices/{device}/state']", 1), ""},
		{"a template of all homes", strings.Replace(good, "user: u", "user: u, publish: ['homes/+/x']", 1), "begin with"},
		{"a template of half a level", strings.Replace(good, "user: u", "user: u, publish: ['homes/{home}/x{user}']", 1), "level"},
		{"a template with # within", strings.Replace(good, "user: u", "user: u, subscribe: ['homes/{home}/#/x']", 1), "level"},
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
	file := writeTest(t, dir, "c.yaml", "- {user: anna, home: h1, hash: '"+HashPassword("secret")+"'}\n")
	d := NewDoor(Settings{Credentials: file, Limits: noLimits, Failure: func() {}})
	if err := d.Load(); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	d.now = func() time.Time { return now }
	admit := func(user, password string) error {
		_, err := d.Admit(t.Context(), Proof{User: user, Password: password, Address: "192.0.2.1"})
		return err
	}
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
	if err := admit("anna", "wrong"); err != ErrAttempts {
		t.Error("an address may guess on:", err)
	}
	if err := admit("anna", "secret"); err != nil {
		t.Error("who is known to be right suffers for others of the same address:", err)
	}
	if _, err := d.Admit(t.Context(), Proof{User: "anna", Password: "wrong", Address: "192.0.2.2"}); err != errCredentials {
		t.Error("another address suffers:", err)
	}
	now = now.Add(FailureEvery)
	if err := admit("anna", "wrong"); err != errCredentials {
		t.Error("it may not try again later:", err)
	}
	t.Run("the right password of another hash is not remembered", func(t *testing.T) {
		writeTest(t, dir, "c.yaml", "- {user: anna, home: h1, hash: '"+HashPassword("changed!")+"'}\n")
		os.Chtimes(file, time.Time{}, time.Now().Add(time.Hour))
		old := d.Users["anna"]
		if err := d.Load(); err != nil || old.Gone(now) == nil {
			t.Fatal(err)
		}
		if _, err := d.Admit(t.Context(), Proof{User: "anna", Password: "secret", Address: "192.0.2.3"}); err != errCredentials {
			t.Error(err)
		}
	})
}

func TestRecentForgets(t *testing.T) {
	r := newRecent[int, int](10)
	for i := range 1000 {
		r.put(i, i)
		r.get(0) // What is used stays
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
	d := NewDoor(Settings{Credentials: file, Limits: noLimits, Failure: func() {}})
	if err := d.Load(); err != nil {
		t.Fatal(err)
	}
	for user, password := range again {
		if _, err := d.Admit(t.Context(), Proof{User: user, Password: password, Address: "x"}); err != nil {
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

func writeTest(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func noLimits(Limits) (messages, bytes *rate.Limiter) {
	return rate.NewLimiter(rate.Inf, 0), rate.NewLimiter(rate.Inf, 0)
}
