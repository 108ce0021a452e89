package ingest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"hearthline/ingest/hook"
)

// headLine is a field line as RFC 9112 (section 5) wants it: no control characters, and no line that goes on with the next.
var headLine = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\\t\\x20-\\x7e\\x80-\\xff]*$")

// raw sends the bytes of one request over HTTP/1.1, and gives the answer: the only one, and well formed to its last byte.
func (r *rig) raw(request string) *http.Response {
	r.t.Helper()
	config := r.tls()
	config.NextProtos = []string{"http/1.1"}
	c, err := tls.Dial("tcp", r.at.HTTP.String(), config)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		r.t.Fatal(err)
	}
	if _, err := io.WriteString(c, request); err != nil {
		r.t.Fatal(err)
	}
	all, err := io.ReadAll(c)
	if err != nil {
		r.t.Fatalf("%q: %v", request, err)
	}
	head, _, _ := bytes.Cut(all, []byte("\r\n\r\n"))
	for i, line := range strings.Split(string(head), "\r\n") {
		if i > 0 && !headLine.MatchString(line) {
			r.t.Errorf("%q: the answer has the line %q", request, line)
		}
	}
	in := bufio.NewReader(bytes.NewReader(all))
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		r.t.Fatalf("%q: %v in %q", request, err, all)
	}
	body, err := io.ReadAll(res.Body)
	if left, _ := io.ReadAll(in); err != nil || len(left) > 0 {
		r.t.Errorf("%q: %v; behind the answer stands %q", request, err, left)
	}
	if res.Header["X-Injected"] != nil {
		r.t.Errorf("%q: a header of the client's making: %q", request, head)
	}
	if strings.Contains(res.Header.Get("Content-Type"), "json") && !json.Valid(body) {
		r.t.Errorf("%q: the answer is no JSON: %q", request, body)
	}
	return res
}

// Whatever a client writes with line breaks in it (as device, home, id, query, header or in a body), the answer has the headers
// that the gateway gives it, and it is one answer.
func TestNobodyAddsHeaders(t *testing.T) {
	r, _ := pair(t, func(g *Gateway) {
		file := write(t, t.TempDir(), "secret", hookSecret+"\n")
		g.Hooks = map[string]*hook.Hook{"cloud": {Home: "h1", SecretFile: file}}
	})
	const (
		evil  = "a%0d%0aX-Injected:%201%0d%0a%0d%0aHTTP/1.1%20200%20OK%0d%0a%0d%0a"
		plain = `a\r\nX-Injected: 1\r\n\r\nHTTP/1.1 200 OK\r\n\r\n` // in JSON
	)
	refused := func(line, body string, header ...string) {
		t.Helper()
		lines := append([]string{line + " HTTP/1.1", "Host: localhost", "Connection: close", fmt.Sprint("Content-Length: ", len(body))}, header...)
		if !strings.Contains(strings.Join(header, ""), "Authorization") {
			lines = append(lines, "Authorization: "+r.basic("app"))
		}
		if res := r.raw(strings.Join(lines, "\r\n") + "\r\n\r\n" + body); res.StatusCode < 300 {
			t.Errorf("%s %q %s: %s", line, header, body, res.Status)
		}
	}
	const command = `{"name":"on"}`
	for _, path := range []string{"/v1/devices/DEVICE/commands/ID", "/v1/devices/DEVICE/commands/ID/events", "/v1/homes/HOME/commands", "/v1/homes/HOME/commands/events",
		"/v1/homes/HOME/shadows", "/v1/homes/HOME/live", "/v1/devices/DEVICE/shadow?home=HOME", "/v1/devices/DEVICE/commands?home=HOME", "/v1/homes/h1/commands?limit=ID",
		"/v1/HOME", "//v1/homes/HOME/../HOME?home=HOME", "/mqtt?x=HOME"} {
		refused("GET "+strings.NewReplacer("DEVICE", evil, "HOME", evil, "ID", evil).Replace(path), "")
	}
	refused("GET /v1/homes/h1/commands/events", "", "Last-Event-ID: "+evil)
	refused("GET /mqtt", "", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: "+evil, "Sec-WebSocket-Key: "+evil, "Sec-WebSocket-Protocol: "+evil, "Origin: https://"+evil)
	refused("POST /v1/devices/"+evil+"/commands", command)
	refused("POST /v1/devices/lamp/commands?home="+evil, command)
	refused("POST /v1/devices/lamp/commands", `{"name":"on","id":"`+plain+`"}`)
	refused("POST /v1/devices/lamp/commands", `{"name":"on","home":"`+plain+`"}`)
	refused("POST /v1/devices/lamp/commands", `{"name":"`+plain+`"}`)
	refused("POST /v1/devices/lamp/commands", `{"name":"on","`+plain+`":1}`)
	refused("PATCH /v1/devices/"+evil+"/shadow", `{"desired":{"on":true}}`)
	refused("PATCH /v1/devices/lamp/shadow", `{"desired":{"on":true}}`, "If-Match: "+evil)
	refused("PATCH /v1/devices/lamp/shadow", `{"`+plain+`":true}`)
	refused("POST /v1/hooks/"+evil, deviceReading)
	refused("POST /v1/hooks/cloud", deviceReading, "webhook-id: "+evil, "webhook-timestamp: "+evil, "webhook-signature: "+evil)
	anna := "Authorization: " + r.basic("anna")
	refused("POST /v1/telemetry", `{"device":"`+plain+`","metric":"power","value":7}`, anna, "Content-Type: "+mediaJSON)
	refused("POST /v1/telemetry", `{"device":"lamp","`+plain+`":"power","value":7}`, anna, "Content-Type: "+mediaJSON)
	refused("POST /v1/telemetry", deviceReading, anna, "Content-Type: "+evil)
	refused("POST /v1/telemetry", deviceReading, anna, "Content-Type: "+mediaJSON, "Content-Encoding: "+evil)
	refused("POST /v1/telemetry", deviceReading, "Authorization: Bearer "+evil, "Content-Type: "+mediaJSON)
	refused("POST /v1/telemetry", deviceReading, anna, "Content-Type: "+mediaJSON, "ce-specversion: 1.0", "ce-type: "+evil, "ce-source: "+evil, "ce-time: "+evil, "ce-id: "+evil)
	refused("PUT%0d%0aX-Injected:%201 /v1/telemetry", deviceReading, anna)
}

// The Location of a command is one line and leads to it, whatever its device is called.
func TestLocationLeadsToTheCommand(t *testing.T) {
	r, _ := pair(t)
	for _, device := range []string{`lämp "1"?x=y&z;%0d%0aX-Injected:%201`, "a b\\c:d"} {
		const body = `{"name":"on"}`
		head := "Host: localhost\r\nConnection: close\r\nAuthorization: " + r.basic("app") + "\r\n"
		res := r.raw("POST /v1/devices/" + url.PathEscape(device) + "/commands HTTP/1.1\r\n" + head + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)) + body)
		if res.StatusCode != http.StatusAccepted {
			t.Errorf("%s: %s", device, res.Status)
			continue
		}
		if res := r.raw("GET " + res.Header.Get("Location") + " HTTP/1.1\r\n" + head + "\r\n"); res.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", device, res.Status)
		}
	}
}
