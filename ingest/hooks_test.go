package ingest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"hearthline/ingest/hook"
)

const hookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// push sends to a webhook and gives the status and body.
func (r *rig) push(name string, body []byte, header ...string) (int, string) {
	r.t.Helper()
	status, answer, _ := r.do("POST", "/v1/hooks/"+name, bytes.NewReader(body), nil, append([]string{"Content-Type", mediaJSON}, header...)...)
	return status, answer
}

// standard signs as the library of Standard Webhooks does.
func standard(t testing.TB, id string, at time.Time, body string) []string {
	t.Helper()
	w, err := webhooks.NewWebhook(hookSecret)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := w.Sign(id, at, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return []string{"webhook-id", id, "webhook-timestamp", strconv.FormatInt(at.Unix(), 10), "webhook-signature", sum}
}

func TestStandardWebhook(t *testing.T) {
	r := newRig(t, func(g *Gateway) {
		file := write(t, t.TempDir(), "secret", hookSecret+"\n")
		g.Hooks = map[string]*hook.Hook{"cloud": {Home: "h1", Homes: []string{"h7"}, SecretFile: file}}
	})
	now := time.Now()
	body := `[` + deviceReading + `,{"home":"h7","device":"lamp","metric":"power","value":8},{"home":"h2","device":"lamp","metric":"power","value":9}]`
	first := standard(t, "msg_1", now, body)
	status, answer := r.push("cloud", []byte(body), first...)
	if status != 200 || !strings.Contains(answer, `"accepted":2`) || !strings.Contains(answer, `"reason":"home"`) {
		t.Fatal(status, answer)
	}
	if status, again := r.push("cloud", []byte(body), first...); status != 200 || again != answer {
		t.Errorf("delivered again: %d %s", status, again)
	}
	if status, _ := r.push("cloud", []byte(body), standard(t, "msg_1", now.Add(time.Second), body)...); status != 200 {
		t.Error("the same delivery, signed anew:", status)
	}
	several := standard(t, "msg_2", now, deviceReading)
	several[5] = "v1,AAAA v1a,AAAA " + several[5]
	if status, answer := r.push("cloud", []byte(deviceReading), several...); status != 200 {
		t.Error("one of several signatures is right:", status, answer)
	}
	homes := map[string]int{}
	for _, e := range r.road.events() {
		homes[e.Home]++
	}
	if homes["h1"] != 2 || homes["h7"] != 1 || len(homes) != 2 {
		t.Error(homes)
	}
	late := standard(t, "msg_3", now.Add(-10*time.Minute), body)
	for _, c := range []struct {
		name   string
		body   string
		header []string
		status int
	}{
		{"another body", body + " ", first, 401},
		{"another id", body, append([]string{"webhook-id", "msg_9"}, first[2:]...), 401},
		{"another time", body, append(append([]string{}, first[:2]...), "webhook-timestamp", strconv.FormatInt(now.Unix()+1, 10), "webhook-signature", first[5]), 401},
		{"too old", body, late, 401},
		{"too new", body, standard(t, "msg_4", now.Add(10*time.Minute), body), 401},
		{"no signature", body, first[:4], 401},
		{"half a signature", body, append(append([]string{}, first[:4]...), "webhook-signature", first[5][:20]), 401},
		{"no time", body, append(append([]string{}, first[:2]...), first[4:]...), 401},
		{"compressed", body, append(first, "Content-Encoding", "gzip"), 415},
		{"XML", body, append(first, "Content-Type", "text/xml"), 415},
		{"5 MB", strings.Repeat(" ", 5<<20), first, 413},
	} {
		t.Run(c.name, func(t *testing.T) {
			if status, answer := r.push("cloud", []byte(c.body), c.header...); status != c.status {
				t.Errorf("%d %s; want %d", status, answer, c.status)
			}
		})
	}
	if status, _ := r.push("nobody", []byte(body), first...); status != 404 {
		t.Error("a hook that is not there:", status)
	}
	if n := r.Stats().Refused["signature"]; n != 8 {
		t.Errorf("%d refused for their signature; want 8", n)
	}
	if n := len(r.road.events()); n != 3 {
		t.Errorf("%d rows; want 3", n)
	}
	if held := r.strangers.Load(); held != 0 {
		t.Errorf("%d bytes of strangers are still held", held)
	}
}

func signed(secret, text string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil))
}

// TestWebhooksOfOtherForms: GitHub's, Slack's, Stripe's.
func TestWebhooksOfOtherForms(t *testing.T) {
	const secret = "a-secret-of-the-clouds"
	t.Setenv("HOOK_SECRET", "the-old-secret-of-it\n"+secret)
	r := newRig(t, func(g *Gateway) {
		g.Hooks = map[string]*hook.Hook{
			"github": {Home: "h1", Scheme: hook.GitHub, SecretEnv: "HOOK_SECRET"},
			"slack": {Home: "h1", Scheme: hook.Custom, SecretEnv: "HOOK_SECRET", Signature: "X-Slack-Signature", Prefix: "v0=", Encoding: "hex",
				Signed: "v0:{timestamp}:{body}", Timestamp: "X-Slack-Request-Timestamp"},
			"stripe": {Home: "h1", Scheme: hook.Custom, SecretEnv: "HOOK_SECRET", Signature: "Stripe-Signature:v1", Encoding: "hex", Signed: "{timestamp}.{body}", Timestamp: "Stripe-Signature:t"},
		}
	})
	now := strconv.FormatInt(time.Now().Unix(), 10)
	rows := 0
	for _, c := range []struct {
		hook   string
		header []string
		status int
		rows   int
	}{
		{"github", []string{"X-Hub-Signature-256", "sha256=" + signed(secret, deviceReading), "X-GitHub-Delivery", "1"}, 200, 1},
		{"github", []string{"X-Hub-Signature-256", "sha256=" + signed(secret, deviceReading), "X-GitHub-Delivery", "1"}, 200, 0},
		{"github", []string{"X-Hub-Signature-256", "sha256=" + signed("nobody knows this one", deviceReading), "X-GitHub-Delivery", "2"}, 401, 0},
		{"github", []string{"X-Hub-Signature-256", signed(secret, deviceReading)}, 401, 0},
		{"slack", []string{"X-Slack-Signature", "v0=" + signed(secret, "v0:"+now+":"+deviceReading), "X-Slack-Request-Timestamp", now}, 200, 1},
		{"slack", []string{"X-Slack-Signature", "v0=" + signed(secret, "v0:"+now+":"+deviceReading), "X-Slack-Request-Timestamp", now}, 200, 0},
		{"stripe", []string{"Stripe-Signature", fmt.Sprintf("t=%s,v1=%s,v0=00", now, signed(secret, now+"."+deviceReading))}, 200, 1},
		{"stripe", []string{"Stripe-Signature", fmt.Sprintf("t=%s,v0=%s", now, signed(secret, now+"."+deviceReading))}, 401, 0},
	} {
		status, answer := r.push(c.hook, []byte(deviceReading), c.header...)
		if rows += c.rows; status != c.status || len(r.road.events()) != rows {
			t.Errorf("%s %v: %d %s, %d rows; want %d, %d", c.hook, c.header, status, answer, len(r.road.events()), c.status, rows)
		}
	}
}

// TestAWebhookTakesCloudEvents: what the body is, its content type says.
func TestAWebhookTakesCloudEvents(t *testing.T) {
	t.Setenv("HOOK_SECRET", hookSecret)
	r := newRig(t, func(g *Gateway) {
		g.Hooks = map[string]*hook.Hook{"cloud": {Homes: []string{"*"}, SecretEnv: "HOOK_SECRET"}}
	})
	body := eventOf("1", `,"subject":"h9/lamp","data":{"value":1}`)
	if status, answer := r.push("cloud", []byte(body), append(standard(t, "1", time.Now(), body), "Content-Type", mediaEvent)...); status != 200 {
		t.Fatal(status, answer)
	}
	nameless := eventOf("2", `,"subject":"lamp","data":{"value":1}`)
	if status, answer := r.push("cloud", []byte(nameless), append(standard(t, "2", time.Now(), nameless), "Content-Type", mediaEvent)...); status != 400 || !strings.Contains(answer, "no home") {
		t.Error(status, answer)
	}
	if all := r.road.events(); len(all) != 1 || all[0].Home != "h9" || all[0].Device != "lamp" {
		t.Errorf("%+v", all)
	}
}

// TestAWebhooksSecretIsReadAgain when its file changes.
func TestAWebhooksSecretIsReadAgain(t *testing.T) {
	file := write(t, t.TempDir(), "secret", "the-first-of-the-secrets")
	r := newRig(t, func(g *Gateway) {
		g.Hooks = map[string]*hook.Hook{"cloud": {Home: "h1", Scheme: hook.GitHub, SecretFile: file}}
	})
	push := func() int {
		status, _ := r.push("cloud", []byte(deviceReading), "X-Hub-Signature-256", "sha256="+signed("the-next-secret-of-them", deviceReading))
		return status
	}
	if push() != 401 {
		t.Fatal("a secret nobody knows yet")
	}
	write(t, strings.TrimSuffix(file, "/secret"), "secret", "the-first-of-the-secrets\nthe-next-secret-of-them\n")
	eventually(t, "the new secret is known", func() bool { return push() == 200 })
}
