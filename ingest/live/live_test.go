package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"hearthline/ingest/identity"
	"hearthline/ingest/table"
	"hearthline/ingest/table/tabletest"
)

// reader is the other end of a stream. While held it takes nothing; stuck, it does not for as long as anybody waits.
type reader struct {
	header http.Header
	mu     sync.Mutex
	text   bytes.Buffer
	hold   chan struct{}
	stuck  bool
	until  time.Time // deadline of writes
}

func (r *reader) Header() http.Header             { return r.header }
func (r *reader) WriteHeader(int)                 {}
func (r *reader) SetReadDeadline(time.Time) error { return nil }

func (r *reader) SetWriteDeadline(until time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.until = until
	return nil
}

func (r *reader) FlushError() error { return nil }

func (r *reader) Write(b []byte) (int, error) {
	r.mu.Lock()
	hold, stuck, until := r.hold, r.stuck, r.until
	r.mu.Unlock()
	if until.IsZero() {
		return 0, errors.New("a write without a deadline")
	}
	if stuck {
		return 0, fmt.Errorf("write: %w", os.ErrDeadlineExceeded)
	}
	if hold != nil {
		<-hold
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(b)
}

// event is one that came.
type event struct{ name, id, data string }

func (r *reader) events() (all []event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, block := range strings.Split(r.text.String(), "\n\n") {
		var e event
		for _, line := range strings.Split(block, "\n") {
			name, value, _ := strings.Cut(line, ": ")
			switch name {
			case "event":
				e.name = value
			case "id":
				e.id = value
			case "data":
				e.data = value
			}
		}
		if e.name != "" {
			all = append(all, e)
		}
	}
	return all
}

func (r *reader) told() string {
	var all []string
	for _, e := range r.events() {
		all = append(all, e.name+" "+e.data)
	}
	return strings.Join(all, "\n")
}

// world is a gateway's live streams over two tables of plain values.
type world struct {
	*Live
	t         *testing.T
	tables    [2]*table.Table
	passwords map[string]string
	door      *identity.Door
	file      string
	stop      chan struct{}
}

func newWorld(t *testing.T, watchMax int) *world {
	w := &world{t: t, stop: make(chan struct{})}
	w.Live = &Live{Settings: Defaults(), Resume: time.Minute, Stop: w.stop}
	for i, name := range []string{"shadow", "command"} {
		tab, _ := tabletest.Start(t, tabletest.NewLog(2), func(tab *table.Table) { tab.WatchMax = watchMax })
		w.tables[i] = tab
		read := func(rec table.Record) (string, any) {
			_, device, _ := strings.Cut(rec.Key, "/")
			return device, json.RawMessage(rec.Value)
		}
		w.Sources[i] = Source{Name: name, Table: tab, Event: read, Standing: func(home string, may func(string) bool) (any, error) {
			all := []any{}
			for _, rec := range tab.Scan(home + "/") {
				if device, v := read(rec); may(device) {
					all = append(all, v)
				}
			}
			return all, nil
		}}
	}
	var err error
	w.file, w.passwords, err = identity.DevCredentials(t.TempDir(), identity.DevUser{User: "app", Home: "h1", Role: identity.RoleApp},
		identity.DevUser{User: "other", Home: "h2", Role: identity.RoleViewer}, identity.DevUser{User: "cloud", Home: "h1", Role: identity.RoleService})
	if err != nil {
		t.Fatal(err)
	}
	w.door = identity.NewDoor(identity.Settings{Credentials: w.file, Failure: func() {}, Limits: func(identity.Limits) (*rate.Limiter, *rate.Limiter) {
		return rate.NewLimiter(rate.Inf, 1), rate.NewLimiter(rate.Inf, 1)
	}})
	if err := w.door.Load(); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) put(table int, key, value string) {
	w.t.Helper()
	var v []byte
	if value != "" {
		v = []byte(value)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	at, err := w.tables[table].Put(ctx, key, v)
	if err == nil {
		err = w.tables[table].Reached(ctx, at)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// open begins a stream of home h1, and gives its reader and how to end it.
func (w *world) open(user, lastEvent string, r *reader) (status func() int, leave func()) {
	w.t.Helper()
	mux := http.NewServeMux()
	w.Routes(mux, func(rw http.ResponseWriter, req *http.Request) *identity.Identity {
		id, err := w.door.Admit(req.Context(), identity.Proof{User: user, Password: w.passwords[user], Address: "test"})
		if err != nil {
			w.t.Error(err)
		}
		return id
	})
	ctx, cancel := context.WithCancel(context.Background())
	req := httptest.NewRequestWithContext(ctx, "GET", "/v1/homes/h1/live", nil)
	if lastEvent != "" {
		req.Header.Set("Last-Event-ID", lastEvent)
	}
	done := make(chan struct{})
	plain := httptest.NewRecorder()
	go func() {
		defer close(done)
		if r == nil {
			mux.ServeHTTP(plain, req)
		} else {
			mux.ServeHTTP(r, req)
		}
	}()
	w.t.Cleanup(func() { cancel(); <-done })
	return func() int { <-done; return plain.Code }, func() { cancel(); <-done }
}

func newReader() *reader { return &reader{header: http.Header{}} }

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never came true: %s", what)
		}
	}
}

func (w *world) tells(r *reader, want ...string) {
	w.t.Helper()
	all := strings.Join(want, "\n")
	for end := time.Now().Add(10 * time.Second); r.told() != all; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("the stream told\n%s\nwant\n%s", r.told(), all)
		}
	}
}

func TestAStreamBeginsWithWhatStands(t *testing.T) {
	w := newWorld(t, 100)
	w.put(0, "h1/lamp", `{"on":1}`)
	w.put(1, "h1/lamp/c1", `{"id":"c1"}`)
	w.put(0, "h2/lamp", `{"on":9}`)
	r := newReader()
	w.open("app", "", r)
	const snapshot = `snapshot {"commands":[{"id":"c1"}],"home":"h1","shadows":[{"on":1}]}`
	w.tells(r, snapshot)
	w.put(0, "h1/lamp", `{"on":2}`)
	w.tells(r, snapshot, `shadow {"on":2}`)
	w.put(1, "h1/lamp/c2", `{"id":"c2"}`)
	w.put(0, "h2/lamp", `{"on":8}`)
	w.tells(r, snapshot, `shadow {"on":2}`, `command {"id":"c2"}`)
	eventually(t, "between events there is no deadline, at which HTTP/2 would end the stream", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.until.IsZero()
	})
	if r.header.Get("Content-Type") != "text/event-stream" || !strings.HasPrefix(r.text.String(), "retry: ") {
		t.Error(r.header, r.text.String())
	}
	// Another stream goes on behind any of the events, and is told what stands of what has changed since.
	w.put(0, "h1/lamp", `{"on":3}`)
	w.put(0, "h1/lamp", `{"on":4}`)
	w.put(0, "h1/door", `{"open":1}`)
	for i, e := range r.events()[:3] {
		again := newReader()
		w.open("app", e.id, again)
		want := []string{`shadow {"on":4}`, `shadow {"open":1}`, `command {"id":"c2"}`}
		if i == 2 {
			want = want[:2] // that it was told of
		}
		w.tells(again, want...)
	}
	if n := w.Stats().Resumed; n != 3 {
		t.Errorf("%d streams went on", n)
	}
	// What cannot be told for sure is told anew.
	for _, id := range []string{"x", "1-1", "1-1-1", fmt.Sprintf("0-0-%d", time.Now().Add(-time.Hour).Unix()), fmt.Sprintf("99-0-%d", time.Now().Unix()), "-1--1-99999999999999999999", strings.Repeat("9", 100)} {
		again := newReader()
		w.open("app", id, again)
		w.tells(again, `snapshot {"commands":[{"id":"c1"},{"id":"c2"}],"home":"h1","shadows":[{"open":1},{"on":4}]}`)
	}
}

// A reader that is slow is told what stands instead of every change; one that takes nothing loses its stream, and both are counted.
func TestSlowReaders(t *testing.T) {
	w := newWorld(t, 8)
	slow, quick, stuck := newReader(), newReader(), newReader()
	for _, r := range []*reader{slow, quick, stuck} {
		w.open("app", "", r)
		w.tells(r, `snapshot {"commands":[],"home":"h1","shadows":[]}`)
	}
	slow.mu.Lock()
	slow.hold = make(chan struct{})
	slow.mu.Unlock()
	stuck.mu.Lock()
	stuck.stuck = true
	stuck.mu.Unlock()
	for i := range 100 {
		w.put(0, "h1/lamp", fmt.Sprintf(`{"on":%d}`, i))
		eventually(t, "who is quick keeps up", func() bool { return strings.HasSuffix(quick.told(), fmt.Sprintf(`{"on":%d}`, i)) })
	}
	eventually(t, "the stream that takes nothing is ended", func() bool { s := w.Stats(); return s.Slow == 1 && s.Open == 2 })
	if n := len(quick.events()); n != 101 {
		t.Errorf("who is quick was told %d events", n)
	}
	close(slow.hold)
	slow.mu.Lock()
	slow.hold = nil
	slow.mu.Unlock()
	eventually(t, "who is slow is told what stands", func() bool { return strings.HasSuffix(slow.told(), `{"on":99}`) })
	if n := len(slow.events()); n > 20 {
		t.Errorf("who is slow was told %d events", n)
	}
	if s := w.Stats(); s.Late != 1 {
		t.Errorf("%+v", s)
	}
}

func TestWhoMayLookOn(t *testing.T) {
	w := newWorld(t, 8)
	w.UserStreamsMax, w.StreamsMax = 2, 3
	for user, want := range map[string]int{"other": 403, "cloud": 403} {
		if status, _ := w.open(user, "", nil); status() != want {
			t.Errorf("%s: %d", user, status())
		}
	}
	var leave []func()
	for range 2 {
		r := newReader()
		_, l := w.open("app", "", r)
		leave = append(leave, l)
		w.tells(r, `snapshot {"commands":[],"home":"h1","shadows":[]}`)
	}
	if status, _ := w.open("app", "", nil); status() != 503 {
		t.Errorf("a third stream of one user: %d", status())
	}
	leave[0]()
	r := newReader()
	w.open("app", "", r)
	w.tells(r, `snapshot {"commands":[],"home":"h1","shadows":[]}`)
	close(w.stop)
	eventually(t, "who looks on is told why it ends", func() bool { return strings.HasSuffix(r.told(), `end {"reason":"`+errStopped.Error()+`"}`) })
	eventually(t, "none is counted as open", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.users) == 0 && w.Stats().Open == 0
	})
}

// FuzzLastEventID: whatever a client says that it was told last, it is a place of a stream or it is not.
func FuzzLastEventID(f *testing.F) {
	f.Add("1-2-3")
	f.Add("-1--1-0")
	f.Add("9223372036854775808-1-1")
	empty, _ := tabletest.Start(f, tabletest.NewLog(1), nil)
	f.Fuzz(func(t *testing.T, id string) {
		s := &stream{l: &Live{Resume: time.Minute, Sources: [2]Source{{Table: empty}, {Table: empty}}}, home: "h"}
		if s.resume(id, time.Now()) && (s.since[0] >= 0 || s.since[1] >= 0) {
			t.Errorf("%q goes on at %v of empty tables", id, s.since)
		}
	})
}
