package commands

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sourcegraph/conc"
	"golang.org/x/time/rate"

	"hearthline/flow"
	"hearthline/ingest/api"
	"hearthline/ingest/identity"
	"hearthline/ingest/peers/peerspb"
	"hearthline/ingest/table"
	"hearthline/ingest/table/tabletest"
)

// world is a few gateways that share a table and reach each other by plain calls.
type world struct {
	t     *testing.T
	log   *tabletest.Log
	mu    sync.Mutex
	nodes map[string]*node
}

// node is a gateway: its commands, and the hubs it has.
type node struct {
	*Commands
	w    *world
	stop func()

	mu    sync.Mutex
	homes map[string]bool // that have a hub here
	got   []string        // ids handed to hubs
	acks  map[string]func()
	steps []string
	cut   bool // the others cannot reach it
}

func newWorld(t *testing.T) *world {
	return &world{t: t, log: tabletest.NewLog(2), nodes: map[string]*node{}}
}

func (w *world) start(name string, set func(*Commands)) *node {
	w.t.Helper()
	n := &node{w: w, homes: map[string]bool{}, acks: map[string]func(){}}
	c := &Commands{Settings: Defaults(), Hubs: n, Others: n, Gateway: name}
	n.Commands = c
	c.Audit = func(cmd *Command) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.steps = append(n.steps, cmd.ID+" "+cmd.State.String())
	}
	if testing.Verbose() {
		c.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("gateway", name)
	}
	if set != nil {
		set(c)
	}
	tab := table.New()
	c.Table = tab
	tab.Name, tab.Log, tab.Partitions = "commands", w.log, 2
	if err := c.Prepare(); err != nil {
		w.t.Fatal(err)
	}
	if err := tab.Prepare(); err != nil {
		w.t.Fatal(err)
	}
	life, end := context.WithCancel(context.Background())
	var work conc.WaitGroup
	run := func(f func(context.Context) error) {
		work.Go(func() {
			if err := f(life); err != nil {
				w.t.Error(err)
			}
		})
	}
	run(tab.Run)
	<-tab.CaughtUp()
	run(c.Run)
	n.stop = func() {
		w.mu.Lock()
		delete(w.nodes, name)
		w.mu.Unlock()
		end()
		work.Wait()
	}
	w.t.Cleanup(n.stop)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[name] = n
	return n
}

// Hand implements Hubs.
func (n *node) Hand(home string, m Message, delivered func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.homes[home] {
		return false
	}
	n.got = append(n.got, m.ID)
	n.acks[m.ID] = delivered
	return true
}

// Listeners implements Others.
func (n *node) Listeners(home, _ string) (out []string) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for name, o := range n.w.nodes {
		o.mu.Lock()
		if o != n && o.homes[home] && !o.cut {
			out = append(out, name)
		}
		o.mu.Unlock()
	}
	return out
}

// Command implements Others.
func (n *node) Command(ctx context.Context, start string, command []byte) (peerspb.CommandReply_Outcome, error) {
	n.w.mu.Lock()
	o := n.w.nodes[start]
	n.w.mu.Unlock()
	if o == nil {
		return 0, errors.New("it is dead")
	}
	return o.Take(ctx, command), nil
}

func (n *node) hub(home string, there bool) {
	n.mu.Lock()
	n.homes[home] = there
	n.mu.Unlock()
	if there {
		n.Connected(home, "homes/"+home+"/devices/+/commands")
	}
}

func (n *node) handed() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.got)
}

// ack is the hub's PUBACK.
func (n *node) ack(id string) {
	n.mu.Lock()
	f := n.acks[id]
	n.mu.Unlock()
	f()
}

func (n *node) report(id, state string) {
	n.w.t.Helper()
	if err := n.Report(ctxOf(n.w.t), "h1", "lamp", id, fmt.Appendf(nil, `{"state":%q,"detail":"by hand","executed_at":"2026-01-31T12:00:00Z"}`, state)); err != nil {
		n.w.t.Fatal(err)
	}
}

func (n *node) submit(r Request) (*Command, bool) {
	n.w.t.Helper()
	if r.Name == "" {
		r.Name = "on"
	}
	cmd, created, err := n.Submit(ctxOf(n.w.t), &r, "h1", "lamp", "anna", nil)
	if err != nil {
		n.w.t.Fatal(err)
	}
	return cmd, created
}

// reaches waits until a node knows a command in a state.
func (n *node) reaches(id string, s State) {
	n.w.t.Helper()
	eventually(n.w.t, fmt.Sprintf("%s knows that %s is %s", n.Gateway, id, s), func() bool {
		cmd, ok := n.Get("h1", "lamp", id)
		return ok && cmd.State == s
	})
}

func ctxOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never came true: %s", what)
		}
	}
}

func TestACommandCrossesGateways(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.start("a", nil), w.start("b", nil), w.start("c", nil)
	b.hub("h1", true)
	cmd, created := a.submit(Request{ID: "one", Arguments: json.RawMessage(`{ "level": 3 }`), TTL: 30})
	if !created || cmd.State < Accepted || string(cmd.Arguments) != `{"level":3}` || cmd.Deadline.Sub(cmd.Created) != 30*time.Second || cmd.By != "anna" {
		t.Errorf("accepted as %+v", cmd)
	}
	c.reaches("one", Sent)
	b.ack("one")
	c.reaches("one", Delivered)
	if open := c.Stats().Open; open != [Executed]int64{Delivered: 1} {
		t.Errorf("open, by state: %v; want one that is delivered", open)
	}
	b.report("one", "executed")
	for _, n := range []*node{a, b, c} {
		n.reaches("one", Executed)
	}
	got, _ := c.Get("h1", "lamp", "one")
	if got.Detail != "by hand" || got.Executed.Year() != 2026 || got.Gateway != "b" || string(got.Arguments) != `{"level":3}` {
		t.Errorf("executed as %+v", got)
	}
	b.report("one", "failed") // the first end stands
	b.ack("one")
	if got := b.handed(); !slices.Equal(got, []string{"one"}) {
		t.Errorf("the hub got %v", got)
	}
	if got, _ := a.Get("h1", "lamp", "one"); got.State != Executed {
		t.Errorf("it came to %s after its end", got.State)
	}
	var steps []string
	eventually(t, "each step is told", func() bool { return a.Stats().Accepted+b.Stats().Executed == 2 })
	for _, n := range []*node{a, b, c} {
		n.mu.Lock()
		steps = append(steps, n.steps...)
		n.mu.Unlock()
	}
	if want := []string{"one accepted", "one sent", "one delivered", "one executed"}; !slices.Equal(steps, want) {
		t.Errorf("the audit has %v", steps)
	}
	eventually(t, "none is counted as under way", func() bool {
		s := a.Stats()
		return s.Active == 0 && s.Open == [Executed]int64{} && s.Accepted == 1
	})
	if s := b.Stats(); s.UntilDelivered.Count != 1 || s.UntilExecuted.Count != 1 || s.UntilExecuted.Sum < s.UntilDelivered.Sum {
		t.Errorf("the time it took is counted as %+v", s)
	}
}

func TestAnIDIsOneCommand(t *testing.T) {
	w := newWorld(t)
	a, b := w.start("a", nil), w.start("b", nil)
	b.hub("h1", true)
	var both sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for i := range 40 {
		both.Add(1)
		go func() {
			defer both.Done()
			n := a
			if i%2 == 0 {
				n = b
			}
			_, created, err := n.Submit(ctxOf(t), &Request{ID: "one", Name: "on"}, "h1", "lamp", "anna", nil)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if created {
				made++
			}
		}()
	}
	both.Wait()
	if got := b.handed(); made != 1 || !slices.Equal(got, []string{"one"}) {
		t.Errorf("asked 40 times: made %d times, sent as %v", made, got)
	}
	if _, _, err := a.Submit(ctxOf(t), &Request{ID: "one", Name: "off"}, "h1", "lamp", "anna", nil); !errors.Is(err, ErrConflict) {
		t.Errorf("another command by the same id: %v", err)
	}
}

func TestOffline(t *testing.T) {
	w := newWorld(t)
	short := func(c *Commands) { c.Grace = 300 * time.Millisecond }
	a, b := w.start("a", short), w.start("b", short)
	a.submit(Request{ID: "late", TTL: 0.3})
	a.submit(Request{ID: "soon", TTL: 60})
	b.reaches("soon", Accepted)
	b.reaches("late", Expired)
	b.hub("h1", true) // it comes back
	b.reaches("soon", Sent)
	if got := slices.Compact(b.handed()); !slices.Equal(got, []string{"soon"}) { // twice, if it came while it was being sent
		t.Errorf("the hub that came back was sent %v", got)
	}
	// Sent, never acknowledged, and sent again to the next connection, wherever that is.
	b.hub("h1", false)
	a.hub("h1", true)
	eventually(t, "it is sent again", func() bool { return slices.Equal(slices.Compact(a.handed()), []string{"soon"}) })
	a.ack("soon")
	a.report("soon", "executed")
	b.reaches("soon", Executed)
	a.reaches("soon", Executed)
	sent := len(a.handed())
	a.hub("h1", true)
	if got := a.handed(); len(got) != sent {
		t.Errorf("what was executed is sent again: %v", got)
	}
	// Sent, and nothing heard of it.
	a.submit(Request{ID: "quiet", TTL: 0.2})
	b.reaches("quiet", Expired)
	a.report("quiet", "executed")
	if got, _ := b.Get("h1", "lamp", "quiet"); got.State != Expired {
		t.Errorf("after its end it is %s", got.State)
	}
	// Reported a little late, executed in time.
	a.submit(Request{ID: "grace", TTL: 0.1})
	<-time.After(200 * time.Millisecond)
	a.report("grace", "executed")
	b.reaches("grace", Executed)
}

// What a gateway that died had accepted is sent by the one that has the hub, or expires.
func TestTheAcceptingGatewayDies(t *testing.T) {
	w := newWorld(t)
	a, b := w.start("a", nil), w.start("b", func(c *Commands) { c.Grace = 0 })
	b.mu.Lock()
	b.homes["h1"], b.cut = true, true // the hub is on b, but a does not know
	b.mu.Unlock()
	a.submit(Request{ID: "one", TTL: 60})
	a.submit(Request{ID: "two", TTL: 0.1})
	a.stop()
	b.reaches("one", Sent)
	b.reaches("two", Expired)
	if got := b.handed(); !slices.Equal(got, []string{"one"}) {
		t.Errorf("the hub got %v", got)
	}
}

func TestNothingIsSentAfterTheDeadline(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	var mu sync.Mutex
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	a := w.start("a", func(c *Commands) { c.Now = clock })
	b := w.start("b", func(c *Commands) { c.Now = clock })
	a.submit(Request{ID: "one", TTL: 10})
	b.reaches("one", Accepted)
	rec, _ := b.Table.Get("h1/lamp/one")
	mu.Lock()
	now = now.Add(10 * time.Second)
	mu.Unlock()
	b.hub("h1", true)
	if got := b.Take(ctxOf(t), rec.Value); got != peerspb.CommandReply_EXPIRED {
		t.Errorf("a command that comes at its deadline: %v", got)
	}
	if got := b.handed(); len(got) > 0 {
		t.Errorf("sent at the deadline: %v", got)
	}
}

func TestWhatHasEndedIsForgotten(t *testing.T) {
	w := newWorld(t)
	a := w.start("a", func(c *Commands) { c.Keep = 300 * time.Millisecond })
	a.hub("h1", true)
	a.submit(Request{ID: "one"})
	a.report("one", "failed")
	a.reaches("one", Failed)
	eventually(t, "it is forgotten", func() bool { _, ok := a.Get("h1", "lamp", "one"); return !ok })
	if a.mu.Lock(); len(a.flight)+len(a.followed)+len(a.active) > 0 {
		t.Errorf("left behind: %v %v %v", a.flight, a.followed, a.active)
	}
	a.mu.Unlock()
}

func TestRequestsAreChecked(t *testing.T) {
	w := newWorld(t)
	a := w.start("a", func(c *Commands) { c.DeviceMax, c.ArgumentsMax = 2, 100 })
	for _, text := range []string{
		``, `[]`, `{"name":"on","more":1}`, `{"name":"on"}{}`, `{}`, `{"name":"a/b"}`, `{"name":"on","id":"a b"}`, `{"name":"on","id":"` + strings.Repeat("x", 65) + `"}`,
		`{"name":"on","ttl":-1}`, `{"name":"on","ttl":1e9}`, `{"name":"on","ttl":5,"deadline":"2099-01-01T00:00:00Z"}`, `{"name":"on","deadline":"2020-01-01T00:00:00Z"}`,
		`{"name":"on","deadline":"2099-01-01T00:00:00Z"}`, `{"name":"on","arguments":"` + strings.Repeat("x", 100) + `"}`, `{"name":"on","id":"events"}`,
	} {
		r, err := ParseRequest([]byte(text))
		if err == nil {
			_, _, err = a.Submit(ctxOf(t), r, "h1", "lamp", "anna", nil)
		}
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", text, err)
		}
	}
	for i := range 3 {
		_, _, err := a.Submit(ctxOf(t), &Request{Name: "on"}, "h1", "lamp", "anna", nil)
		if (i == 2) != errors.Is(err, ErrTooMany) || i < 2 && err != nil {
			t.Errorf("command %d: %v", i, err)
		}
	}
	for _, text := range []string{``, `{}`, `{"state":"done"}`, `{"state":"executed","executed_at":"yesterday"}`} {
		if err := a.Report(ctxOf(t), "h1", "lamp", "one", []byte(text)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestHTTP(t *testing.T) {
	w := newWorld(t)
	a, b := w.start("a", nil), w.start("b", func(c *Commands) { c.StreamsMax = 2 })
	a.hub("h1", true)
	dir := t.TempDir()
	file, passwords, err := identity.DevCredentials(dir, identity.DevUser{User: "app", Home: "h1", Role: identity.RoleApp},
		identity.DevUser{User: "viewer", Home: "h1", Role: identity.RoleViewer}, identity.DevUser{User: "other", Home: "h2", Role: identity.RoleApp})
	if err != nil {
		t.Fatal(err)
	}
	who := doorOf(t, file)
	mux := http.NewServeMux()
	b.Routes(mux, who)
	server := httptest.NewServer(mux)
	defer server.Close()
	do := func(user, method, path, body string, header ...string) (*http.Response, map[string]any) {
		t.Helper()
		req, err := http.NewRequest(method, server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(user, passwords[user])
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		if !strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
			defer res.Body.Close()
			_ = json.NewDecoder(res.Body).Decode(&got)
		}
		return res, got
	}
	live, _ := do("viewer", "GET", "/v1/homes/h1/commands/events", "")
	defer live.Body.Close()
	lines := bufio.NewScanner(live.Body)
	event := func(lines *bufio.Scanner) string {
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var c Command
				if err := json.Unmarshal([]byte(data), &c); err != nil {
					t.Fatal(err)
				}
				return c.ID + " " + c.State.String()
			}
		}
		return "the end"
	}
	res, got := do("app", "POST", "/v1/devices/lamp/commands", `{"id":"one","name":"on","arguments":{"level":3},"ttl":20}`)
	if res.StatusCode != 202 || got["id"] != "one" || res.Header.Get("Location") != "/v1/devices/lamp/commands/one?home=h1" {
		t.Errorf("%d %v %s", res.StatusCode, got, res.Header)
	}
	if res, got := do("app", "POST", "/v1/devices/lamp/commands", `{"id":"one","name":"on","arguments":{"level":3},"ttl":20}`); res.StatusCode != 200 || got["id"] != "one" {
		t.Errorf("again: %d %v", res.StatusCode, got)
	}
	a.ack("one")
	a.report("one", "executed")
	for _, want := range []string{"one accepted", "one sent", "one delivered", "one executed"} {
		if got := event(lines); got != want {
			t.Fatalf("the stream says %s; want %s", got, want)
		}
	}
	once, _ := do("app", "GET", "/v1/devices/lamp/commands/one/events?home=h1", "")
	defer once.Body.Close()
	single := bufio.NewScanner(once.Body)
	if got := []string{event(single), event(single)}; !slices.Equal(got, []string{"one executed", "the end"}) {
		t.Errorf("the stream of a command that has ended says %v", got)
	}
	since, _ := do("app", "GET", "/v1/devices/lamp/commands/events", "", "Last-Event-ID", "0")
	defer since.Body.Close()
	if got := event(bufio.NewScanner(since.Body)); got != "one executed" {
		t.Errorf("who comes back is told %s", got)
	}
	if res, _ := do("app", "GET", "/v1/devices/lamp/commands/events", ""); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
		t.Errorf("a stream too many: %d", res.StatusCode)
	}
	if res, got := do("viewer", "GET", "/v1/devices/lamp/commands/one", ""); res.StatusCode != 200 || got["state"] != "executed" || got["detail"] != "by hand" {
		t.Errorf("%d %v", res.StatusCode, got)
	}
	if res, got := do("viewer", "GET", "/v1/homes/h1/commands?limit=1", ""); res.StatusCode != 200 || len(got["commands"].([]any)) != 1 {
		t.Errorf("%d %v", res.StatusCode, got)
	}
	for _, c := range []struct {
		user, method, path, body string
		status                   int
	}{
		{"viewer", "POST", "/v1/devices/lamp/commands", `{"name":"on"}`, 403},
		{"other", "POST", "/v1/devices/lamp/commands?home=h1", `{"name":"on"}`, 403},
		{"other", "GET", "/v1/devices/lamp/commands/one?home=h1", ``, 403},
		{"other", "GET", "/v1/devices/lamp/commands/one", ``, 404},
		{"other", "GET", "/v1/homes/h1/commands/events", ``, 403},
		{"app", "GET", "/v1/devices/lamp/commands/two", ``, 404},
		{"app", "GET", "/v1/devices/lamp/commands/two/events", ``, 404},
		{"app", "GET", "/v1/homes/h1/commands?limit=0", ``, 400},
		{"app", "GET", "/v1/devices/lamp/commands/events", ``, 503},
		{"app", "POST", "/v1/devices/lamp/commands", `{"name":"on","id":"one"}`, 409},
		{"app", "POST", "/v1/devices/lamp/commands", `{"name":""}`, 400},
		{"app", "POST", "/v1/devices/lamp/commands", `{"name":"` + strings.Repeat("x", 1<<20) + `"}`, 413},
	} {
		if res, got := do(c.user, c.method, c.path, c.body); res.StatusCode != c.status {
			t.Errorf("%s %s %s: %d %v; want %d", c.user, c.method, c.path, res.StatusCode, got, c.status)
		}
	}
}

// doorOf authenticates by a credentials file.
func doorOf(t *testing.T, file string) api.Authenticate {
	t.Helper()
	door := identity.NewDoor(identity.Settings{Credentials: file, Failure: func() {}, Limits: func(identity.Limits) (*rate.Limiter, *rate.Limiter) {
		return rate.NewLimiter(rate.Inf, 1), rate.NewLimiter(rate.Inf, 1)
	}})
	if err := door.Load(); err != nil {
		t.Fatal(err)
	}
	return func(w http.ResponseWriter, r *http.Request) *identity.Identity {
		user, password, _ := r.BasicAuth()
		id, err := door.Admit(r.Context(), identity.Proof{User: user, Password: password, Address: "test"})
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return nil
		}
		return id
	}
}

// road keeps what is published.
type road struct {
	mu     sync.Mutex
	fail   int
	rows   int
	ends   int
	beats  int
	last   map[int32]flow.Position
	faulty bool
}

func (r *road) Publish(_ context.Context, stream string, partition int32, batches ...flow.Batch) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail > 0 {
		r.fail--
		return 0, errors.New("no broker")
	}
	for _, b := range batches {
		if p, ok := r.last[partition]; ok && !b.Lineage.Position.After(p) || stream != "commands" {
			r.faulty = true
		}
		r.last[partition] = b.Lineage.Position
		switch b.Kind {
		case flow.KindRows:
			r.rows += int(b.Record.NumRows())
			r.faulty = r.faulty || !b.Record.Schema().Equal(flow.CommandSchema)
		case flow.KindEnd:
			r.ends++
		case flow.KindHeartbeat:
			r.beats++
		}
	}
	return 0, nil
}

func TestAuditIsWritten(t *testing.T) {
	r := &road{last: map[int32]flow.Position{}, fail: 3}
	a := &Audit{To: "commands", Partitions: 2, Producer: "gateway/test~1", RunID: "run", Linger: time.Millisecond, Heartbeat: 5 * time.Millisecond, Publisher: r}
	if err := a.Prepare(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, 10*time.Second) }()
	now := time.Now()
	for i := range 100 {
		a.Write(&Command{ID: fmt.Sprint(i), Home: fmt.Sprint("h", i%7), Device: "lamp", Name: "on", Created: now, Deadline: now, Changed: now, State: State(i%6 + 1), By: "anna", Gateway: "g"})
		if i == 50 {
			eventually(t, "heartbeats are sent", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.beats > 2 })
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if r.rows != 100 || r.ends != 2 || r.faulty {
		t.Errorf("%d rows, %d ends, faulty %t", r.rows, r.ends, r.faulty)
	}
}

// FuzzRequests: what apps and hubs send is read or refused, and what is read is written again as it was.
func FuzzRequests(f *testing.F) {
	f.Add([]byte(`{"name":"on","arguments":{"a":[1]},"ttl":5}`))
	f.Add([]byte(`{"state":"executed","detail":"x","executed_at":1769860800000}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &Commands{Settings: Defaults(), Now: time.Now, Gateway: "g"}
		if r, err := ParseRequest(data); err == nil {
			if cmd, err := c.command(r, "h", "d", "u"); err == nil {
				raw, err := json.Marshal(cmd)
				if err != nil {
					t.Fatal(err)
				}
				back, err := decode(raw)
				if err != nil || !back.same(cmd) || !back.Deadline.Equal(cmd.Deadline) {
					t.Fatalf("%s came back as %+v, %v", raw, back, err)
				}
			}
		} else if !errors.Is(err, ErrInvalid) {
			t.Fatal(err)
		}
		if _, detail, _, err := parseReport(data); err == nil && len(detail) > detailBytesMax {
			t.Fatalf("%d bytes of detail", len(detail))
		}
	})
}
