package ingest

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

func key(text string) []string { return []string{"Idempotency-Key", text} }

// TestAKeyIsWrittenOnce sends requests again, as a cloud does that had no answer.
func TestAKeyIsWrittenOnce(t *testing.T) {
	r := newRig(t, nil)
	lines := deviceReading + "\n" + `{"device":"lamp","metric":"power"}` + "\n"
	first, answer, header := r.post("anna", mediaLines, []byte(lines), key(`"one"`)...)
	if first != 200 || header.Get("Idempotency-Replayed") != "" {
		t.Fatal(first, answer)
	}
	status, again, header := r.post("anna", mediaLines, []byte(lines), key("one")...) // the same key, without quotes
	if status != 200 || again != answer || header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%d %s %v; want the first answer again: %s", status, again, header, answer)
	}
	if status, again, _ := r.post("anna", mediaLines, gzipped([]byte(lines)), "Idempotency-Key", "one", "Content-Encoding", "gzip"); status != 200 || again != answer {
		t.Errorf("the same rows compressed: %d %s", status, again)
	}
	if n := len(r.road.events()); n != 1 {
		t.Errorf("%d rows in the log; want 1", n)
	}
	for _, c := range []struct {
		name, user, body string
		key              []string
		status           int
	}{
		{"another body", "anna", deviceReading, key("one"), 422},
		{"another user has keys of its own", "lamp", deviceReading, key("one"), 200},
		{"no key", "anna", lines, nil, 200},
		{"a key that is none", "anna", lines, key(`"one`), 400},
		{"an empty key", "anna", lines, key(`""`), 400},
		{"a long key", "anna", lines, key(fmt.Sprintf("%0300d", 1)), 400},
		{"a quote inside", "anna", lines, key(`"a"b"`), 400},
		{"an escaped quote", "anna", lines, key(`"a\"b"`), 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			if status, body, _ := r.post(c.user, mediaLines, []byte(c.body), c.key...); status != c.status {
				t.Errorf("%d %s; want %d", status, body, c.status)
			}
		})
	}
	// What was refused is refused again, by the same words, though nothing was written.
	wrong := `{"device":"lamp","metric":"power"}`
	status, answer, _ = r.post("anna", mediaJSON, []byte(wrong), key("bad")...)
	if again, text, _ := r.post("anna", mediaJSON, []byte(wrong), key("bad")...); status != 400 || again != 400 || text != answer {
		t.Error(status, again, text)
	}
	if n := r.Stats().Repeated; n != 3 {
		t.Errorf("%d requests counted as repeated; want 3", n)
	}
}

// TestAKeyUnderWay lets the log take too long: the rows of the first request are on their way, so the second must
// neither write them again nor be told that they are durable before they are.
func TestAKeyUnderWay(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.StoreTimeout = 300 * time.Millisecond })
	r.road.failing.Store(true)
	if status, body, _ := r.post("anna", mediaJSON, []byte(deviceReading), key("slow")...); status != 503 {
		t.Fatal(status, body)
	}
	if status, body, header := r.post("anna", mediaJSON, []byte(deviceReading), key("slow")...); status != 409 || header.Get("Retry-After") == "" {
		t.Fatalf("%d %s; want 409: it is under way", status, body)
	}
	r.road.failing.Store(false)
	eventually(t, "the rows are durable, and said to be", func() bool {
		status, _, header := r.post("anna", mediaJSON, []byte(deviceReading), key("slow")...)
		return status == 200 && header.Get("Idempotency-Replayed") == "true"
	})
	if n := len(r.road.events()); n != 1 {
		t.Errorf("%d rows in the log; want 1", n)
	}
}

// TestAKeyThatCouldNotBeHandedIn is free again: nothing was done under it.
func TestAKeyThatCouldNotBeHandedIn(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.StoreTimeout, g.RowsMax, g.QueueMax, g.BytesMax = 200*time.Millisecond, 1, 1, 1 })
	r.road.failing.Store(true)
	for i := range 10 { // until the queue is full
		r.post("anna", mediaJSON, []byte(deviceReading), key(fmt.Sprint("fill", i))...)
	}
	if status, body, _ := r.post("anna", mediaJSON, []byte(deviceReading), key("late")...); status != 503 {
		t.Fatal(status, body)
	}
	r.road.failing.Store(false)
	status := 0
	eventually(t, "it is taken", func() bool {
		var header http.Header
		status, _, header = r.post("anna", mediaJSON, []byte(deviceReading), key("late")...)
		if header.Get("Idempotency-Replayed") != "" {
			t.Error("it was never handed in, and is said to be durable")
		}
		return status == 200
	})
}

// TestManyAtOnceUnderOneKey: one of them writes.
func TestManyAtOnceUnderOneKey(t *testing.T) {
	r := newRig(t, nil)
	r.road.delay.Store(int64(100 * time.Millisecond))
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[int]int{}
	for range 20 {
		wg.Go(func() {
			status, _, _ := r.post("anna", mediaJSON, []byte(deviceReading), key("all")...)
			mu.Lock()
			defer mu.Unlock()
			seen[status]++
		})
	}
	wg.Wait()
	if n := len(r.road.events()); n != 1 || seen[200] < 1 || seen[200]+seen[409] != 20 {
		t.Errorf("%d rows, answers %v", n, seen)
	}
}

// TestRepeatsAreBounded in number, bytes and time, and one sender does not push out another's.
func TestRepeatsAreBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	m := newRepeats(100, 50*repeatBytes, time.Hour, func() time.Time { return now })
	sum := sha256.Sum256
	take := func(sender, key string) (done bool, err error) {
		r, done, err := m.begin(sender, key, sum(nil))
		if err == nil && !done {
			m.finish(r, &receipt{Accepted: 1}, nil)
		}
		return done, err
	}
	take("quiet", "mine")
	for i := range 1000 {
		take("loud", fmt.Sprint(i))
		if len(m.known) > 26 || m.bytes > m.bytesMax {
			t.Fatalf("%d entries, %d bytes", len(m.known), m.bytes)
		}
	}
	if done, err := take("quiet", "mine"); !done || err != nil {
		t.Error("a loud sender has pushed out a quiet one's", err)
	}
	if done, _ := take("loud", "999"); !done {
		t.Error("the newest is forgotten")
	}
	if done, _ := take("loud", "1"); done {
		t.Error("the oldest is remembered")
	}
	for s := range 40 { // many senders
		for i := range 10 {
			take(fmt.Sprint("s", s), fmt.Sprint(i))
		}
		if len(m.known) > 100 || m.bytes > m.bytesMax {
			t.Fatalf("%d entries, %d bytes", len(m.known), m.bytes)
		}
	}
	now = now.Add(2 * time.Hour)
	if done, _ := take("s39", "9"); done {
		t.Error("it is remembered for longer than an hour")
	}
	if len(m.known) != 1 || len(m.senders) != 1 || m.age.Len() != 1 {
		t.Errorf("%d entries of %d senders are left", len(m.known), len(m.senders))
	}
	var open []*repeat // what is under way is not forgotten, and not without limit
	for i := range 200 {
		r, _, err := m.begin(fmt.Sprint("u", i%10), fmt.Sprint(i), sum(nil))
		if err == nil {
			open = append(open, r)
		} else if !errors.Is(err, errRepeats) {
			t.Fatal(err)
		}
	}
	if len(open) != 100 {
		t.Errorf("%d under way at once; want 100", len(open))
	}
	for _, r := range open {
		m.forget(r)
	}
	if len(m.known) != 0 || len(m.senders) != 0 || m.bytes != 0 {
		t.Errorf("%d entries, %d senders, %d bytes are left", len(m.known), len(m.senders), m.bytes)
	}
}

// TestAnAnswerWithVerdictsIsRememberedWhole, up to the limit of bytes.
func TestAnAnswerWithVerdictsIsRememberedWhole(t *testing.T) {
	r := newRig(t, nil)
	var body []byte
	for i := range 2000 {
		body = fmt.Appendf(body, `{"device":"lamp","metric":"power","value":%d,"what":%d}`+"\n", i, i)
	}
	body = append(body, deviceReading...)
	_, first, _ := r.post("anna", mediaLines, body, key("many")...)
	_, again, _ := r.post("anna", mediaLines, body, key("many")...)
	var got receipt
	if err := json.Unmarshal([]byte(again), &got); err != nil || again != first || got.Refused != 2000 || len(got.Rows) != verdictsMax {
		t.Error(err, got.Refused, len(got.Rows))
	}
}
