package cli

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/time/rate"

	"hearthline/ingest/identity"
)

// What `credential add` prints opens the door, and the file holds none of it.
func TestCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials.yaml")
	if err := os.WriteFile(file, []byte("# who comes in\n- {user: old, home: h0, certificate: old}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	do := func(in string, args ...string) (string, error) {
		root := newRoot(&options{})
		var out bytes.Buffer
		root.SetArgs(append([]string{"credential"}, args...))
		root.SetIn(strings.NewReader(in))
		root.SetOut(&out)
		root.SetErr(io.Discard)
		err := root.ExecuteContext(t.Context())
		return strings.TrimSpace(out.String()), err
	}
	add := func(in string, args ...string) string {
		t.Helper()
		out, err := do(in, append([]string{"add", "--file", file}, args...)...)
		if err != nil {
			t.Fatal(args, err)
		}
		_, secret, _ := strings.Cut(out, ": ")
		return secret
	}
	made := add("", "hub", "--home", "h1", "--device", "lamp")
	key := add("", "cloud", "--homes", "h1=service,h2=service", "--key")
	add("correct horse\n", "anna", "--homes", "h1=app,h2=viewer", "--password")
	if out := add("", "hub2", "--home", "h2", "--certificate", "hub2"); out != "" {
		t.Errorf("a secret nobody asked for: %s", out)
	}
	hash, err := do("battery staple", "hash")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(text), "# who comes in\n") {
		t.Errorf("%s %v", text, err)
	}
	for _, secret := range []string{made, key, "correct horse"} {
		if len(secret) < 8 || bytes.Contains(text, []byte(secret)) {
			t.Errorf("%q stands in the file, or is none", secret)
		}
	}
	if err := os.WriteFile(file, append(text, "- {user: dora, home: h3, hash: '"+hash+"'}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	door := identity.NewDoor(identity.Settings{Credentials: file, Failure: func() {}, Limits: func(identity.Limits) (*rate.Limiter, *rate.Limiter) { return nil, nil }})
	if err := door.Load(); err != nil {
		t.Fatal(err)
	}
	for _, p := range []identity.Proof{{User: "hub", Password: made}, {Bearer: key}, {User: "anna", Password: "correct horse"}, {User: "dora", Password: "battery staple"}} {
		if _, err := door.Admit(t.Context(), p); err != nil {
			t.Errorf("%s: %v", p.User, err)
		}
	}
	for _, args := range [][]string{
		{"add", "--file", file, "hub", "--home", "h1"},
		{"add", "--file", file, "x", "--home", "a/b"},
		{"add", "--file", file, "x"},
		{"add", "--file", file, "x", "--homes", "h1"},
		{"add", "--file", file, "x", "--homes", "h1=king"},
		{"add", "--file", file, "x", "--home", "h", "--password"},
		{"hash"},
	} {
		if out, err := do("short", args...); err == nil {
			t.Errorf("%v is taken: %s", args, out)
		}
	}
	if again, err := os.ReadFile(file); err != nil || strings.Count(string(again), "user:") != 6 {
		t.Errorf("a refused entry is in the file: %s %v", again, err)
	}
}
