package hook_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"hearthline/ingest/hook"
)

func open(t *testing.T, h hook.Hook, secret string) *hook.Lock {
	t.Helper()
	t.Setenv("HOOK_TEST_SECRET", secret)
	h.SecretEnv = "HOOK_TEST_SECRET"
	if err := h.Check(); err != nil {
		t.Fatal(err)
	}
	l, err := h.Open()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestGitHubsOwnExample is the one of its documentation, "Validating webhook deliveries".
func TestGitHubsOwnExample(t *testing.T) {
	l := open(t, hook.Hook{Home: "h", Scheme: hook.GitHub}, "It's a Secret to Everybody")
	c, err := l.Read(http.Header{"X-Hub-Signature-256": {"sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Verify([]byte("Hello, World!")); err != nil {
		t.Error(err)
	}
	if err := c.Verify([]byte("Hello, World")); err == nil {
		t.Error("another body passes")
	}
}

func TestSettingsThatCannotWork(t *testing.T) {
	for _, c := range []struct {
		says string
		h    hook.Hook
	}{
		{"whose the rows are", hook.Hook{SecretEnv: "X"}},
		{"secret_env and secret_file", hook.Hook{Home: "h"}},
		{"secret_env and secret_file", hook.Hook{Home: "h", SecretEnv: "X", SecretFile: "y"}},
		{"scheme", hook.Hook{Home: "h", SecretEnv: "X", Scheme: "sha1"}},
		{"signature", hook.Hook{Home: "h", SecretEnv: "X", Scheme: hook.Custom}},
		{"encoding", hook.Hook{Home: "h", SecretEnv: "X", Scheme: hook.Custom, Signature: "S", Signed: "{body}"}},
		{"{body}", hook.Hook{Home: "h", SecretEnv: "X", Signed: "{id}"}},
		{"timestamp", hook.Hook{Home: "h", SecretEnv: "X", Scheme: hook.GitHub, Timestamp: "T"}},
		{"timestamp", hook.Hook{Home: "h", SecretEnv: "X", Scheme: hook.GitHub, Signed: "{timestamp}{body}"}},
		{"id names no header", hook.Hook{Home: "h", SecretEnv: "X", Scheme: hook.Custom, Signature: "S", Encoding: "hex", Signed: "{id}{body}"}},
		{"tolerance", hook.Hook{Home: "h", SecretEnv: "X", Tolerance: 24 * time.Hour}},
		{"homes", hook.Hook{Homes: []string{"a/b"}, SecretEnv: "X"}},
		{"home", hook.Hook{Home: "a/b", SecretEnv: "X"}},
	} {
		if err := c.h.Check(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v; want %q", c.h, err, c.says)
		}
	}
}

func TestSecretsThatCannotWork(t *testing.T) {
	for secret, says := range map[string]string{
		"": "0 secrets", "tiny-one": "guessed", "whsec_%%%": "base64", strings.Repeat("sixteen-bytes-at-least\n", 5): "5 secrets",
	} {
		t.Setenv("HOOK_TEST_SECRET", secret)
		h := hook.Hook{Home: "h", SecretEnv: "HOOK_TEST_SECRET"}
		if err := h.Check(); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Open(); err == nil || !strings.Contains(err.Error(), says) || secret != "" && strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v; want %q", secret, err, says)
		}
	}
}

// FuzzRead: whatever the headers say, they are taken apart in bounds, and no body passes.
func FuzzRead(f *testing.F) {
	f.Add("msg", "1700000000", "v1,AAAA")
	f.Add("", "-1", "v1, v1,, =,t=1,v1=00")
	f.Fuzz(func(t *testing.T, id, stamp, signature string) {
		for _, h := range []hook.Hook{
			{Home: "h"},
			{Home: "h", Scheme: hook.Custom, Signature: "S:v1", Encoding: "hex", Signed: "{timestamp}.{body}", Timestamp: "S:t"},
		} {
			l := open(t, h, "a-secret-that-nobody-knows")
			c, err := l.Read(http.Header{"Webhook-Id": {id}, "Webhook-Timestamp": {stamp}, "Webhook-Signature": {signature}, "S": {signature}}, time.Unix(1700000000, 0))
			if err == nil && c.Verify([]byte(id)) == nil {
				t.Error("signed by chance")
			}
		}
	})
}
