package console

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/pipeline"
	"hearthline/pipeline/compare"
)

// fieldLine is a field line as RFC 9112 (section 5) wants it, of a head or of trailers.
var fieldLine = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\\t\\x20-\\x7e\\x80-\\xff]*$")

// raw asks over HTTP/1.1 and gives the answer, with its trailers: the only one, and well formed to its last byte.
func raw(t *testing.T, base, target string, header ...string) *http.Response {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	lines := append([]string{"GET " + target + " HTTP/1.1", "Host: localhost", "Connection: close"}, header...)
	if _, err := io.WriteString(c, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%s: %v", target, err)
	}
	head, rest, _ := bytes.Cut(all, []byte("\r\n\r\n"))
	fields := strings.Split(string(head), "\r\n")[1:]
	if _, trailers, chunked := strings.Cut(string(rest), "0\r\n"); chunked {
		fields = append(fields, strings.Split(strings.TrimRight(trailers, "\r\n"), "\r\n")...)
	}
	for _, line := range fields {
		if line != "" && !fieldLine.MatchString(line) {
			t.Errorf("%s: the answer has the line %q", target, line)
		}
	}
	in := bufio.NewReader(bytes.NewReader(all))
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatalf("%s: %v in %q", target, err, all)
	}
	_, err = io.ReadAll(res.Body)
	if left, _ := io.ReadAll(in); err != nil || len(left) > 0 {
		t.Errorf("%s: %v; behind the answer stands %q", target, err, left)
	}
	if res.Header["X-Injected"] != nil || res.Trailer["X-Injected"] != nil {
		t.Errorf("%s: a header that nobody meant: %q", target, all)
	}
	return res
}

// What is asked for, and what an error says, may hold line breaks: the answer has the headers that the console gives it.
func TestNobodyAddsHeaders(t *testing.T) {
	const evil = "a%0d%0aX-Injected:%201%0d%0a%0d%0aHTTP/1.1%20200%20OK%0d%0a%0d%0a"
	broken := errors.New("kafka says\x00\r\nX-Injected: 1\r\n\r\nHTTP/1.1 200 OK\x7f" + strings.Repeat(" more", 10_000))
	s := demo(newWorld(homesPlan()))
	s.Tail = func(context.Context, string, func(int32, arrow.Record)) error { return broken }
	s.ReadyErr = func() error { return broken }
	base := serve(t, s)
	for _, target := range []string{"/" + evil, "//" + evil + "/../" + evil, "/api/tap?stream=" + evil, "/api/tap?stream=readings&rows=" + evil, "/api/compare?stage=" + evil, "/readyz?" + evil} {
		if res := raw(t, base, target, "Last-Event-ID: "+evil, "If-None-Match: "+evil, "Accept: "+evil); res.StatusCode < 300 {
			t.Errorf("%s: %s", target, res.Status)
		}
	}
	says := func(base, target string) {
		t.Helper()
		got := raw(t, base, target).Trailer.Get("Hearthline-Error")
		if !strings.HasPrefix(got, "kafka says   X-Injected: 1") || len(got) > trailerMax || strings.ContainsAny(got, "\x00\x7f") {
			t.Errorf("%s: the trailer says %.80q, %d bytes", target, got, len(got))
		}
	}
	says(base, "/api/tap?stream=alerts")

	score := &pipeline.StageNode{Stage: pipeline.Stage{Name: "score", Use: "score", Trial: &pipeline.Trial{Kind: pipeline.TrialShadow, Use: "score-v2"}},
		Outputs: map[string]string{"scores": "scores"}, Dead: "score.dead"}
	plan := newFakePlan("homes", 1)
	plan.stream("scores", "score")
	plan.stream("scores.shadow", "score-shadow").Side = true
	plan.plan.Units = []*pipeline.Unit{{Name: "score", Stages: []*pipeline.StageNode{score}}}
	says(serve(t, &Server{Plan: plan.plan, Compare: func(context.Context, *compare.Comparison) error { return broken }}), "/api/compare?stage=score")
}
