package ingest

import (
	"os"
	"strings"
	"testing"

	"hearthline/ingest/identity"
)

// A key or a list of users that others than the owner may read or change is not used, and the error says what to do.
func TestOpenSecretsAreRefused(t *testing.T) {
	dir := t.TempDir()
	certs, err := identity.DevCertificates(dir)
	if err != nil {
		t.Fatal(err)
	}
	users, _, err := identity.DevCredentials(dir, identity.DevUser{User: "demo", Home: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{certs.Key, users} {
		for _, mode := range []os.FileMode{0o644, 0o604, 0o660, 0o602} {
			if err := os.Chmod(file, mode); err != nil {
				t.Fatal(err)
			}
			g := New()
			g.MQTT, g.HTTP, g.Certificate, g.Key, g.Credentials = "127.0.0.1:0", "", certs.Certificate, certs.Key, users
			g.Publisher, g.Partitions, g.Instance = newRoad(), 1, "g"
			if err := g.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "chmod 600 "+file) {
				t.Errorf("%s with mode %04o: %v", file, mode, err)
			}
		}
		if err := os.Chmod(file, 0o440); err != nil { // as Kubernetes mounts it
			t.Fatal(err)
		}
	}
}
