package shadow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/ingest/mqtt"
	"hearthline/ingest/table"
	"hearthline/ingest/table/tabletest"
)

// node is a gateway: its shadows, and the clients it has.
type node struct {
	*Shadows
	t    *testing.T
	stop func()

	mu      sync.Mutex
	filters []string // subscribed to here
	full    bool     // the hub has no room
	deltas  []string
	docs    []string
	changes []Change
	acks    []func()
}

func start(t *testing.T, log *tabletest.Log, name string, set func(*Shadows)) *node {
	t.Helper()
	n := &node{t: t}
	s := &Shadows{Settings: Defaults(), Clients: n, Gateway: name}
	n.Shadows = s
	s.Audit = func(c Change) { n.mu.Lock(); defer n.mu.Unlock(); n.changes = append(n.changes, c) }
	if testing.Verbose() {
		s.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("gateway", name)
	}
	if set != nil {
		set(s)
	}
	tab := table.New()
	s.Table = tab
	tab.Name, tab.Log, tab.Partitions, tab.RepairWait = "shadows", log, 2, 20*time.Millisecond
	if err := s.Prepare(); err != nil {
		t.Fatal(err)
	}
	if err := tab.Prepare(); err != nil {
		t.Fatal(err)
	}
	life, end := context.WithCancel(context.Background())
	var work conc.WaitGroup
	run := func(f func(context.Context) error) {
		work.Go(func() {
			if err := f(life); err != nil {
				t.Error(err)
			}
		})
	}
	run(tab.Run)
	<-tab.CaughtUp()
	run(s.Run)
	n.stop = func() { end(); work.Wait() }
	t.Cleanup(n.stop)
	return n
}

// Listening implements Clients.
func (n *node) Listening(_, topic string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.filters, func(f string) bool { return mqtt.Matches(f, topic) })
}

// Publish implements Clients.
func (n *node) Publish(_, _ string, payload []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.docs = append(n.docs, string(payload))
}

// Hand implements Clients.
func (n *node) Hand(_, _, _ string, payload []byte, acked func()) (sent, noRoom int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.full {
		return 0, 1
	}
	var d Delta
	if err := json.Unmarshal(payload, &d); err != nil || len(d.Metadata) == 0 {
		n.t.Errorf("a delta is %s: %v", payload, err)
	}
	n.deltas, n.acks = append(n.deltas, fmt.Sprintf("%d %s", d.Version, d.State)), append(n.acks, acked)
	return 1, 0
}

func (n *node) hub() {
	n.mu.Lock()
	n.filters = append(n.filters, "homes/h1/devices/+/shadow/delta")
	n.mu.Unlock()
	n.Connected("h1", "homes/h1/devices/+/shadow/delta")
}

func (n *node) told() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.deltas, "; ")
}

func (n *node) set(h Half, patch string) {
	n.t.Helper()
	if err := n.Do(ctxOf(n.t), Update{Home: "h1", Device: "lamp", Half: h, Patch: []byte(patch), Version: AnyVersion, By: "anna"}); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) doc() *Document {
	n.t.Helper()
	d, ok, err := n.Get("h1", "lamp")
	if err != nil {
		n.t.Fatal(err)
	}
	if !ok {
		return &Document{}
	}
	return d
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

func TestTheDifferenceGoesToTheHub(t *testing.T) {
	log := tabletest.NewLog(2)
	a, b := start(t, log, "a", nil), start(t, log, "b", nil)
	a.set(Desired, `{"power":"on","level":40}`)
	b.set(Reported, `{"level":10,"battery":90}`)
	b.hub() // it comes, wherever that is
	told := func(want ...string) {
		t.Helper()
		all := strings.Join(want, "; ")
		eventually(t, "the hub is told "+all, func() bool { return b.told() == all })
	}
	told(`1 {"level":40,"power":"on"}`)
	b.set(Reported, `{"level":40.0}`) // nearer: it need not be told the rest again
	a.set(Desired, `{"color":{"r":1,"g":2}}`)
	told(`1 {"level":40,"power":"on"}`, `2 {"color":{"g":2,"r":1},"power":"on"}`)
	b.set(Reported, `{"power":"on","color":{"r":1,"g":2,"b":3}}`)
	eventually(t, "nothing differs", func() bool { return a.doc().Version == 5 && a.doc().Delta == nil })
	b.set(Reported, `{"color":{"g":5}}`) // by itself
	told(`1 {"level":40,"power":"on"}`, `2 {"color":{"g":2,"r":1},"power":"on"}`, `2 {"color":{"g":2}}`)
	a.set(Desired, `{"color":null}`) // nothing to tell
	a.set(Desired, `{"level":41}`)
	told(`1 {"level":40,"power":"on"}`, `2 {"color":{"g":2,"r":1},"power":"on"}`, `2 {"color":{"g":2}}`, `4 {"level":41}`)
	if a.told() != "" {
		t.Errorf("a gateway without the hub sent %s", a.told())
	}
	d := a.doc()
	if string(d.Desired) != `{"level":41,"power":"on"}` || string(d.Reported) != `{"battery":90,"color":{"b":3,"g":5,"r":1},"level":40,"power":"on"}` && string(d.Reported) != `{"battery":90,"color":{"b":3,"g":5,"r":1},"level":40.0,"power":"on"}` ||
		string(d.Delta) != `{"level":41}` || d.Metadata.Desired.Version != 4 || d.Metadata.Reported.Version != 4 || d.Version != 8 || d.Metadata.Desired.By != "anna" {
		t.Errorf("%+v", d)
	}
	times := d.Metadata.Desired.Properties
	if len(times) != 2 || times["level"].Before(times["power"]) || times["power"].IsZero() {
		t.Errorf("times %v", times)
	}
	b.mu.Lock()
	for _, acked := range b.acks {
		acked()
	}
	b.mu.Unlock()
	if s := b.Stats(); s.Deltas != 4 || s.Acked != 4 || s.Reported != 4 || s.Pending != 0 || a.Stats().Desired != 4 {
		t.Errorf("%+v %+v", s, a.Stats())
	}
	eventually(t, "what was wanted is written down", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.changes) == 4 })
	if c := a.changes[3]; c.Version != 4 || string(c.Patch) != `{"level":41}` || c.By != "anna" {
		t.Errorf("written down: %+v", c)
	}
}

// What is so already changes nothing: no record, no version, no event.
func TestNothingNewIsNotWritten(t *testing.T) {
	log := tabletest.NewLog(2)
	a := start(t, log, "a", nil)
	a.set(Reported, `{}`)
	a.set(Reported, `null`)
	a.set(Reported, `{"a":null}`)
	if _, ok, _ := a.Get("h1", "lamp"); ok || log.Len() != 0 {
		t.Fatalf("there is a shadow, %d records", log.Len())
	}
	a.set(Reported, `{"a":1,"b":{"c":[1,2]}}`)
	before := a.doc()
	for _, patch := range []string{`{"a":1.0}`, `{"b":{"c":[1,2]}}`, `{}`, `{"x":null}`, `{"b":{"d":null}}`} {
		a.set(Reported, patch)
	}
	if after := a.doc(); after.Version != before.Version || !after.Metadata.Reported.Updated.Equal(before.Metadata.Reported.Updated) || log.Len() != 1 {
		t.Errorf("%+v, %d records", after, log.Len())
	}
	if n := a.Stats().Unchanged; n != 8 {
		t.Errorf("%d unchanged", n)
	}
	a.set(Reported, `null`)
	if d := a.doc(); string(d.Reported) != `{}` || len(d.Metadata.Reported.Properties) != 0 {
		t.Errorf("cleared: %+v", d)
	}
}

// Many change one half at once, on two gateways: nothing that was said to stand is lost.
func TestConcurrentChanges(t *testing.T) {
	const each = 60
	log := tabletest.NewLog(2)
	a, b := start(t, log, "a", nil), start(t, log, "b", nil)
	var work sync.WaitGroup
	for i := range 4 {
		n := []*node{a, b}[i%2]
		work.Add(1)
		go func() {
			defer work.Done()
			for k := range each {
				for {
					err := n.Do(ctxOf(t), Update{Home: "h1", Device: "lamp", Patch: fmt.Appendf(nil, `{"p%d":%d,"of%d":{"n%d":%d}}`, i, k, i, k%7, k), Version: AnyVersion})
					if err == nil {
						break
					}
					t.Error(err)
				}
			}
		}()
	}
	work.Wait()
	log.Compact()
	// A counter: each adds one to what it has read, and only where nobody else did in between.
	for i := range 4 {
		n := []*node{a, b}[i%2]
		work.Add(1)
		go func() {
			defer work.Done()
			for range each / 4 {
				for {
					d := n.doc()
					var state struct{ Sum int }
					if err := json.Unmarshal(d.Desired, &state); err != nil {
						t.Error(err)
					}
					err := n.Do(ctxOf(t), Update{Home: "h1", Device: "lamp", Patch: fmt.Appendf(nil, `{"Sum":%d}`, state.Sum+1), Version: d.Metadata.Desired.Version})
					if err == nil {
						break
					} else if !errors.Is(err, ErrVersion) {
						t.Error(err)
					}
				}
			}
		}()
	}
	work.Wait()
	log.Compact()
	c := start(t, log, "c", nil) // one that comes later
	want := map[string]any{"Sum": float64(each / 4 * 4)}
	for i := range 4 {
		of := map[string]any{}
		for k := range each {
			of[fmt.Sprintf("n%d", k%7)] = float64(k)
		}
		want[fmt.Sprintf("p%d", i)], want[fmt.Sprintf("of%d", i)] = float64(each-1), of
	}
	text, _ := json.Marshal(want)
	for _, n := range []*node{a, b, c} {
		eventually(t, "all know the same", func() bool {
			var got map[string]any
			if err := json.Unmarshal(n.doc().Desired, &got); err != nil {
				return false
			}
			all, _ := json.Marshal(got)
			return string(all) == string(text)
		})
	}
	if a.Stats().Conflicts+b.Stats().Conflicts == 0 {
		t.Error("they never met: this test has shown nothing")
	}
	if v := a.doc().Metadata.Desired.Version; v != 4*each+each {
		t.Errorf("version %d after %d changes", v, 5*each)
	}
}

// A record that came second, and whose gateway died on it, is not what a later gateway begins with: the first is written again, above it.
func TestTheFirstStands(t *testing.T) {
	log := tabletest.NewLog(2)
	a := start(t, log, "a", nil)
	a.set(Desired, `{"n":1}`)
	first, _ := a.Table.Get("h1/lamp/desired")
	second, err := decode(first.Value)
	if err != nil {
		t.Fatal(err)
	}
	second.State, second.write = json.RawMessage(`{"n":2}`), "dead/1"
	raw, err := second.encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Table.Put(ctxOf(t), "h1/lamp/desired", raw); err != nil {
		t.Fatal(err)
	}
	log.Compact() // what stands is gone from the log
	b := start(t, log, "b", nil)
	if got := string(b.doc().Desired); got != `{"n":2}` {
		t.Fatalf("b begins with %s: this test shows nothing", got)
	}
	for _, n := range []*node{a, b} {
		eventually(t, "the first stands", func() bool { return string(n.doc().Desired) == `{"n":1}` })
	}
	if v := a.doc().Metadata.Desired.Version; v != 1 {
		t.Errorf("written again, it has version %d", v)
	}
}

func TestVersions(t *testing.T) {
	log := tabletest.NewLog(2)
	a := start(t, log, "a", func(s *Shadows) { s.Keep = 200 * time.Millisecond })
	do := func(u Update) error {
		u.Home, u.Device = "h1", "lamp"
		return a.Do(ctxOf(t), u)
	}
	for i, c := range []struct {
		patch   string
		version int64
		want    error
	}{
		{`{"a":1}`, PresentVersion, ErrVersion}, {`{"a":1}`, 1, ErrVersion}, {`{"a":1}`, 0, nil}, {`{"a":2}`, 0, ErrVersion}, {`{"a":2}`, 1, nil},
		{`{"a":3}`, 1, ErrVersion}, {`{"a":3}`, PresentVersion, nil}, {`{"a":4}`, AnyVersion, nil},
	} {
		if err := do(Update{Patch: []byte(c.patch), Version: c.version}); !errors.Is(err, c.want) {
			t.Errorf("%d: %v; want %v", i, err, c.want)
		}
	}
	a.set(Reported, `{"a":3}`)
	a.hub()
	if err := do(Update{Delete: true, Version: 2}); !errors.Is(err, ErrVersion) {
		t.Error(err)
	}
	if err := do(Update{Delete: true, Version: 4}); err != nil {
		t.Error(err)
	}
	if _, ok, err := a.Get("h1", "lamp"); ok || err != nil {
		t.Error("it is still there", err)
	}
	if all, err := a.List("h1", func(string) bool { return true }); err != nil || len(all) != 0 {
		t.Error(all, err)
	}
	if err := do(Update{Delete: true, Version: AnyVersion}); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
	a.set(Desired, `{"a":5}`)
	if v := a.doc().Metadata.Desired.Version; v != 6 {
		t.Errorf("version %d after it was deleted at 5", v)
	}
	if got := a.told(); got != `4 {"a":4}; 6 {"a":5}` {
		t.Errorf("the hub was told %s", got)
	}
	if err := do(Update{Delete: true, Version: AnyVersion}); err != nil {
		t.Error(err)
	}
	eventually(t, "it is forgotten", func() bool { return len(a.Table.Scan("h1/")) == 0 })
	a.set(Reported, `{"a":1}`)
	if v := a.doc().Version; v != 1 {
		t.Errorf("version %d of a new one", v)
	}
}

// A hub that had no room for its delta gets it when it has.
func TestAHubIsOwedItsDelta(t *testing.T) {
	a := start(t, tabletest.NewLog(2), "a", nil)
	a.hub()
	a.full = true
	a.set(Desired, `{"a":1}`)
	a.set(Desired, `{"a":2}`)
	a.mu.Lock()
	a.full = false
	a.mu.Unlock()
	eventually(t, "it is told", func() bool { return a.told() == `2 {"a":2}` })
	<-time.After(tick + 200*time.Millisecond)
	if a.told() != `2 {"a":2}` {
		t.Errorf("told %s", a.told())
	}
}

func TestLimits(t *testing.T) {
	log := tabletest.NewLog(2)
	a := start(t, log, "a", func(s *Shadows) {
		s.DocumentMax, s.DepthMax, s.PropertiesMax, s.DevicesMax, s.DevicePendingMax = 100, 3, 4, 2, 4
	})
	do := func(device, patch string) error {
		return a.Do(ctxOf(t), Update{Home: "h1", Device: device, Half: Reported, Patch: []byte(patch), Version: AnyVersion})
	}
	for _, patch := range []string{``, `1`, `[]`, `"x"`, `{`, `{"a":1}{}`, `{"a":1}x`, `{"":1}`, `{"` + strings.Repeat("x", 129) + `":1}`, `{"a\u0000":1}`,
		`{"a":1e999}`, `{"a":` + strings.Repeat("1", 50) + `}`, `{"a":"` + strings.Repeat("x", 100) + `"}`, `{"a":[[[1]]]}`, `{"a":` + strings.Repeat("[", 100_000),
		`{"a":1,"b":2,"c":3,"d":4,"e":5}`, `{"a":{"b":1,"c":2,"d":3,"e":4}}`, `{"a":[{"b":1,"c":2},{"b":1,"c":2}]}`, `{"a":NaN}`, `{"a":01}`} {
		if err := do("lamp", patch); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.60s: %v", patch, err)
		}
	}
	for _, device := range []string{"", "a/b", "a\x00", "+", strings.Repeat("x", 200)} {
		if err := do(device, `{"a":1}`); !errors.Is(err, ErrInvalid) {
			t.Errorf("device %.20q: %v", device, err)
		}
	}
	if log.Len() != 0 {
		t.Fatalf("%d records", log.Len())
	}
	for device, want := range map[string]error{"lamp": nil, "door": nil} {
		if err := do(device, `{"a":1,"b":[{"c":"<&>"}]}`); !errors.Is(err, want) {
			t.Error(err)
		}
	}
	if err := do("third", `{"a":1}`); !errors.Is(err, ErrTooMany) {
		t.Error(err)
	}
	if err := do("lamp", `{"x":"`+strings.Repeat("x", 60)+`"}`); err != nil {
		t.Error(err)
	}
	if err := do("lamp", `{"y":"`+strings.Repeat("x", 60)+`"}`); !errors.Is(err, ErrInvalid) {
		t.Error("a document grows past its limit by patches:", err)
	}
	a.HomeBytesMax = a.held("h1") + 20
	if err := do("door", `{"y":"`+strings.Repeat("y", 40)+`"}`); !errors.Is(err, ErrTooMany) {
		t.Error("a home grows past its limit:", err)
	}
	for _, patch := range []string{`{"y":"y"}`, `{"a":null}`, `{"y":null}`} {
		if err := do("door", patch); err != nil {
			t.Errorf("%s: %v", patch, err)
		}
	}
	a.HomeBytesMax = 1 << 20
	log.SetDelay(50 * time.Millisecond)
	taken := 0
	for a.Offer(Update{Home: "h1", Device: "door", Half: Reported, Patch: []byte(fmt.Sprintf(`{"a":%d}`, taken+2)), Version: AnyVersion}, func() func(error) { return func(error) {} }) {
		taken++
	}
	if taken < 4 || taken > 8 {
		t.Errorf("%d changes wait", taken)
	}
	eventually(t, "they are written", func() bool { return a.Stats().Pending == 0 })
}

// What one connection says of a device takes effect in its order, and many changes share records.
func TestOrder(t *testing.T) {
	log := tabletest.NewLog(2)
	log.SetDelay(5 * time.Millisecond)
	a := start(t, log, "a", func(s *Shadows) { s.DevicePendingMax = 1000 })
	var done sync.WaitGroup
	for i := range 200 {
		done.Add(1)
		u := Update{Home: "h1", Device: "lamp", Half: Reported, Patch: fmt.Appendf(nil, `{"n":%d,"m%d":%d}`, i, i%5, i), Version: AnyVersion}
		if !a.Offer(u, func() func(error) {
			return func(err error) {
				if err != nil {
					t.Error(err)
				}
				done.Done()
			}
		}) {
			t.Fatal("no room")
		}
	}
	done.Wait()
	if got := string(a.doc().Reported); got != `{"m0":195,"m1":196,"m2":197,"m3":198,"m4":199,"n":199}` {
		t.Error(got)
	}
	if v := a.doc().Metadata.Reported.Version; v != 200 || log.Appends() > 50 {
		t.Errorf("version %d, %d appends", v, log.Appends())
	}
}

// A log that is away fails changes, and does not keep them.
func TestTheLogIsAway(t *testing.T) {
	log := tabletest.NewLog(2)
	a := start(t, log, "a", func(s *Shadows) { s.WriteTimeout = time.Second })
	log.SetDown(true)
	if err := a.Do(ctxOf(t), Update{Home: "h1", Device: "lamp", Patch: []byte(`{"a":1}`), Version: AnyVersion}); !errors.Is(err, tabletest.ErrDown) {
		t.Error(err)
	}
	log.SetDown(false)
	a.set(Desired, `{"a":2}`)
	log.SetDelay(time.Hour)
	if err := a.Do(ctxOf(t), Update{Home: "h1", Device: "lamp", Patch: []byte(`{"a":3}`), Version: AnyVersion}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if s := a.Stats(); s.Pending != 0 || s.Desired != 1 || len(a.wrote) != 0 {
		t.Errorf("%+v", s)
	}
}

// BenchmarkFollow is what a change of some home's shadow costs every other gateway: where nobody listens, and where an app and a hub do.
func BenchmarkFollow(b *testing.B) {
	for _, listening := range []bool{false, true} {
		b.Run(map[bool]string{false: "nobody", true: "both"}[listening], func(b *testing.B) {
			n := &node{}
			s := &Shadows{Settings: Defaults(), Clients: n, Gateway: "a"}
			n.Shadows = s
			tab, _ := tabletest.Start(b, tabletest.NewLog(1), func(tab *table.Table) {
				s.Table = tab
				if err := s.Prepare(); err != nil {
					b.Fatal(err)
				}
			})
			state := map[string]any{}
			for i := range 12 {
				state[fmt.Sprintf("property%d", i)] = map[string]any{"value": json.Number("40.5"), "unit": "%"}
			}
			patch, err := encode(state)
			if err != nil {
				b.Fatal(err)
			}
			record := func(h Half) (table.Record, table.Record) {
				first, err := s.apply(nil, &Update{Patch: patch, Version: AnyVersion})
				if err != nil {
					b.Fatal(err)
				}
				second, err := s.apply(first, &Update{Patch: []byte(`{"property3":{"value":41}}`), Version: AnyVersion})
				if err != nil {
					b.Fatal(err)
				}
				old, err1 := first.encode()
				is, err2 := second.encode()
				if err := errors.Join(err1, err2); err != nil {
					b.Fatal(err)
				}
				return table.Record{Key: keyOf("h1", "lamp", h), Value: old}, table.Record{Key: keyOf("h1", "lamp", h), Value: is}
			}
			for _, h := range []Half{Desired, Reported} {
				_, is := record(h)
				at, err := tab.Put(ctxOf(b), is.Key, is.Value)
				if err == nil {
					err = tab.Reached(ctxOf(b), at)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			if listening {
				n.filters = []string{"homes/h1/#"}
			}
			old, is := record(Reported)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if !Rule(old, is) {
					b.Fatal("refused")
				}
				s.changed(old, is)
				n.docs, n.deltas, n.acks = n.docs[:0], n.deltas[:0], n.acks[:0]
			}
		})
	}
}

// FuzzPatches: what comes is refused or merged as RFC 7396 says; what was merged is read again, and its own difference is none.
func FuzzPatches(f *testing.F) {
	f.Add([]byte(`{"a":1}`), []byte(`{"a":{"b":null}}`))
	f.Add([]byte(`{"a":{"b":[1,{"c":null}]}}`), []byte(`{"a":{"b":null,"x":{"y":null,"z":1e3}}}`))
	f.Add([]byte(`null`), []byte(`{"\u0041":"\ud800","b":-0,"c":1.0}`))
	f.Add([]byte(`{"a":"\u2028<>&"}`), []byte(`[[[[[[[[[[[[[[`))
	s := &Shadows{Settings: Defaults(), Now: time.Now, Logger: slog.New(slog.DiscardHandler)}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		_, _ = decode(two)
		if p, err := readPatch(two); err != nil && !errors.Is(err, ErrInvalid) || err == nil && p.Desired == nil && p.Reported == nil {
			t.Fatal(p, err)
		}
		var base *section
		for _, patch := range [][]byte{one, two} {
			next, err := s.apply(base, &Update{Patch: patch, Version: AnyVersion})
			if err != nil && !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			if err != nil || next == nil {
				continue
			}
			raw, err := next.encode()
			if err != nil || len(next.State) > s.DocumentMax {
				t.Fatal(len(next.State), err)
			}
			back, err := decode(raw)
			if err != nil {
				t.Fatal(err)
			}
			state, err := back.object()
			if h := back.header; h != next.header || Rule(table.Record{Value: raw}, table.Record{Value: raw}) || !Rule(table.Record{Value: raw}, table.Record{Value: Raise(raw)}) {
				t.Fatalf("%+v came back as %+v", next.header, h)
			}
			if err != nil || len(difference(state, next.state)) > 0 || len(difference(next.state, state)) > 0 || len(back.Times) != len(state) {
				t.Fatalf("%s came back as %s: %v", next.State, back.State, err)
			}
			again, err := s.apply(back, &Update{Patch: patch, Version: AnyVersion})
			if err != nil || again != nil {
				t.Fatalf("%s upon its own result %s gave %+v, %v", patch, back.State, again, err)
			}
			base = back
		}
	})
}

// The examples of RFC 7396, appendix A, whose results are objects.
func TestMergePatch(t *testing.T) {
	for _, c := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`}, {`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`}, {`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`}, {`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`}, {`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`}, {`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`}, {`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`}, {`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
	} {
		target, err := parse([]byte(c[0]), 8)
		if err != nil {
			t.Fatal(err)
		}
		patch, err := parse([]byte(c[1]), 8)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := encode(merge(target, patch)); err != nil || string(got) != c[2] {
			t.Errorf("%s upon %s: %s, %v; want %s", c[1], c[0], got, err, c[2])
		}
	}
}
