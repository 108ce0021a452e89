package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/blobs"
	"hearthline/console"
	"hearthline/flow"
	"hearthline/pipeline/compare"
	"hearthline/pipeline/run"
	"hearthline/sinks/clickhouse"
	"hearthline/sinks/parquet"
	"hearthline/streams"
)

// askWait bounds one look at ClickHouse or the Parquet files: a status line must not wait for what it reports on.
const askWait = 5 * time.Second

// ledger asks every place that keeps readings how many it has.
type ledger struct {
	stream string // of the readings
	engine *clickhouse.Sink
	files  *parquet.Counter
	acked  func() (int64, error)
	homes  bool

	opening sync.Mutex // the display and the console ask at once
	opened  bool
}

// entries are the numbers of one moment; -1 is unknown.
type entries struct {
	acknowledged, clickhouse, parquet, parquetFiles, dead, scores, alerts int64
}

// newLedger finds the plan's ClickHouse and Parquet sinks.
func (u *up) newLedger() (*ledger, error) {
	l := &ledger{stream: "readings", acked: u.sim.ExpectedRows, homes: u.hasHomes()}
	for _, s := range u.plan.Sinks {
		switch sink := s.New().(type) {
		case *clickhouse.Sink:
			l.engine = sink
		case *parquet.Sink:
			store, err := blobs.Open(sink.To, sink.S3)
			if err != nil {
				return nil, err
			}
			l.files = &parquet.Counter{Store: store}
		}
	}
	return l, nil
}

func (l *ledger) read(ctx context.Context) (entries, error) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	e := entries{-1, -1, -1, -1, -1, -1, -1}
	var errs []error
	if l.homes {
		n, err := l.acked()
		if err != nil {
			errs = append(errs, err)
		} else {
			e.acknowledged = n
		}
	}
	if l.engine != nil {
		errs = append(errs, l.askEngine(ctx, &e))
	}
	if l.files != nil {
		c, err := l.files.Count(ctx, l.stream)
		if err != nil {
			errs = append(errs, err)
		} else {
			e.parquet, e.parquetFiles = c.Rows, int64(c.Files)
		}
	}
	return e, errors.Join(errs...)
}

func (l *ledger) askEngine(ctx context.Context, e *entries) error {
	if err := l.open(ctx); err != nil {
		return err
	}
	counts, err := l.engine.RowCounts(ctx)
	if err != nil {
		return err
	}
	e.clickhouse, e.dead = int64(counts[l.stream]), int64(counts["dead"])
	e.scores, e.alerts = int64(counts["scores"]), int64(counts["alerts"])
	return nil
}

// open connects to ClickHouse, unless that has been done.
func (l *ledger) open(ctx context.Context) error {
	l.opening.Lock()
	defer l.opening.Unlock()
	if l.opened {
		return nil
	}
	if err := l.engine.Open(ctx); err != nil {
		return err
	}
	l.opened = true
	return nil
}

// close ends the connection to ClickHouse.
func (l *ledger) close() {
	l.opening.Lock()
	defer l.opening.Unlock()
	if l.opened {
		_ = l.engine.Close() // it was only asked
		l.opened = false
	}
}

// startConsole starts the web page with everything `up` knows.
func (u *up) startConsole(ctx context.Context) error {
	token, err := consoleToken(u.plan.Spec.Console)
	if err != nil {
		return err
	}
	books, err := u.newLedger()
	if err != nil {
		return err
	}
	u.books = books
	if u.page == "" {
		u.registry.MustRegister(processCollector{u.ready, u.countKafka})
	}
	r := u.runner(run.Drain{}, nil)
	ready := make(chan string, 1)
	s := &console.Server{
		Listen: cmp.Or(u.page, u.plan.Spec.Console.Listen), Plan: u.plan, Meter: u.meter, Gatherer: u.registry, Log: u.log.With("node", "console"),
		Token: token, Insecure: u.plan.Spec.Console.Insecure,
		Live: u.live, ReadyErr: u.ready,
		Lag: r.Lag, Taps: u.taps, Links: u.links(), Ready: func(addr string) { ready <- addr },
		Numbers: u.numbers, Alerts: u.alerts,
		Tail: func(ctx context.Context, stream string, give func(int32, arrow.Record)) error {
			return r.Tail(ctx, stream, func(m streams.Message) { give(m.Partition, m.Batch.Record) })
		},
		Compare: func(ctx context.Context, c *compare.Comparison) error {
			return readVersions(ctx, r, c, time.Time{}, true)
		},
	}
	for _, e := range clickhouse.Examples() {
		s.Queries = append(s.Queries, console.Query{Title: e.Title, SQL: e.SQL})
	}
	u.pages = u.start(ctx, "console", s.Run)
	u.page, err = await(ctx, ready)
	return err
}

func (u *up) links() []console.Link {
	var links []console.Link
	for _, at := range u.doors {
		links = append(links,
			console.Link{Name: "MQTT over TLS", URL: "mqtts://" + addrText(at.MQTT), User: "demo", Note: "password in " + u.data + "/gateway/passwords.json"},
			console.Link{Name: "HTTP ingest", URL: "https://" + addrText(at.HTTP) + "/v1/telemetry", User: "demo", Note: "the same password"})
	}
	if u.clickhouse.HTTP != "" {
		links = append(links, console.Link{Name: "ClickHouse", URL: "http://" + u.clickhouse.HTTP + "/play",
			User: u.clickhouse.Dashboard.Name, Note: "may only read; password in " + u.clickhouseSecrets()})
	}
	return append(links, console.Link{Name: "Kafka", URL: "kafka://" + u.kafka})
}

func (u *up) clickhouseSecrets() string { return filepath.Join(u.data, "clickhouse", "secrets.json") }

func (u *up) numbers(ctx context.Context) ([]console.Number, error) {
	e, err := u.books.read(ctx)
	var numbers []console.Number
	add := func(label, same string, v int64, note string) {
		if v >= 0 {
			numbers = append(numbers, console.Number{Label: label, Value: v, Unit: "rows", Same: same, Note: note})
		}
	}
	add("acknowledged to homes", "readings", e.acknowledged, "")
	add("in ClickHouse", "readings", e.clickhouse, "")
	add("in Parquet", "readings", e.parquet, fmt.Sprintf("%s files", count(e.parquetFiles)))
	add("dead letters", "", e.dead, "")
	add("scores", "", e.scores, "")
	add("alerts", "", e.alerts, "raised and resolved")
	return numbers, err
}

func (u *up) alerts(ctx context.Context) ([]console.Alert, error) {
	if u.books.engine == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	if err := u.books.open(ctx); err != nil {
		return nil, err
	}
	res, err := u.books.engine.Query(ctx, 20, `SELECT time, started, home, device, metric, state, severity, score, value, threshold
		FROM alerts ORDER BY received DESC, time DESC LIMIT 20`)
	if err != nil {
		return nil, err
	}
	var alerts []console.Alert
	for _, r := range res.Rows {
		alerts = append(alerts, console.Alert{
			Time: micros(r[0]), Started: micros(r[1]), Home: text(r[2]), Device: text(r[3]), Metric: text(r[4]),
			State: text(r[5]), Severity: text(r[6]), Score: number(r[7]), Value: number(r[8]), Threshold: number(r[9]),
		})
	}
	return alerts, nil
}

func micros(v any) flow.Micros {
	t, _ := v.(time.Time)
	return flow.MicrosOf(t)
}

func text(v any) string { s, _ := v.(string); return s }

func number(v any) float64 { f, _ := v.(float64); return f }

// showAddresses prints where everything is, and how to look at it.
func (u *up) showAddresses(s *screen) {
	var b strings.Builder
	fmt.Fprintf(&b, "\nHearthline is up (%v). Everything is in %s.\n\n", time.Since(u.started).Round(100*time.Millisecond), u.data)
	// A terminal is looked at by who started this; what goes elsewhere is kept, and read by others.
	secret := func(password, file string) string {
		if s.terminal {
			return "password " + password
		}
		return "password in " + file
	}
	line := func(what, where, note string) {
		b.WriteString(strings.TrimRight(fmt.Sprintf("  %-11s %-34s %s", what, where, note), " ") + "\n")
	}
	line("console", "http://"+u.page, "the graph, live")
	if u.clickhouse.HTTP != "" {
		line("ClickHouse", "http://"+u.clickhouse.HTTP+"/play",
			fmt.Sprintf("user %s, %s (reads only)", u.clickhouse.Dashboard.Name, secret(u.clickhouse.Dashboard.Password, u.clickhouseSecrets())))
	}
	file := filepath.Join(u.data, "gateway", "passwords.json")
	for i, at := range u.doors {
		if i > 0 {
			line("another", "mqtts://"+addrText(at.MQTT), "the same users")
			line("", "https://"+addrText(at.HTTP), "")
			continue
		}
		line("gateway", "mqtts://"+addrText(at.MQTT), fmt.Sprintf("user demo, %s, CA %s", secret(u.passwords["demo"], file), u.certs.CA))
		line("", "https://"+addrText(at.HTTP), "POST /v1/telemetry, the same user")
		if password, ok := u.passwords["phone"]; ok && u.hasHomes() { // it was given out when there were homes
			line("", "", fmt.Sprintf("POST /v1/devices/{device}/commands, user phone of %s, %s", u.sim.HomeNames()[0], secret(password, file)))
			line("", "", "GET /v1/homes/"+u.sim.HomeNames()[0]+"/live, the same user")
		}
	}
	line("Kafka", u.kafka, "hearthline tap readings")
	if u.clickhouse.HTTP != "" {
		user := u.clickhouse.Dashboard.Name // of whom curl asks for the password
		if s.terminal {
			user += ":" + u.clickhouse.Dashboard.Password
		}
		fmt.Fprintf(&b, "\n  curl -s http://%s -u %s --data-binary \\\n    \"SELECT home, device, metric, value, score FROM %s.scores ORDER BY score DESC LIMIT 5 FORMAT PrettyCompact\"\n",
			u.clickhouse.HTTP, user, u.clickhouse.Database)
	}
	s.say("%s", b.String())
}

// watch shows what happens until ctx ends.
func (u *up) watch(ctx context.Context, s *screen) {
	every := 5 * time.Second
	if s.live {
		every = time.Second
	}
	rates := newRates(u.meter)
	tick, look := time.NewTicker(every), time.NewTicker(fileLookEvery)
	defer tick.Stop()
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			if u.edited() {
				u.change(ctx, s)
			}
			continue
		case <-tick.C:
		}
		e, err := u.books.read(ctx)
		if ctx.Err() != nil {
			return
		}
		rates.sample(time.Now())
		if s.live {
			s.draw(u.table(e, rates, err))
		} else {
			s.say("%s", u.line(e, rates))
		}
	}
}

func known(n int64) string {
	if n < 0 {
		return "?"
	}
	return count(n)
}

func (u *up) line(e entries, r *rates) string {
	raw := u.plan.Spec.Gateway.To
	line := fmt.Sprintf("%8s  %s %s rows/s", time.Since(u.started).Round(time.Second), raw, count(int64(r.of(pipelineGateway(u.plan), raw))))
	if e.acknowledged >= 0 {
		line += "  acknowledged " + count(e.acknowledged)
	}
	return line + fmt.Sprintf("  ClickHouse %s  Parquet %s (%s files)  dead %s  alerts %s", known(e.clickhouse), known(e.parquet),
		known(e.parquetFiles), known(e.dead), known(e.alerts))
}

// table is the live view: numbers, then a line an edge.
func (u *up) table(e entries, r *rates, err error) string {
	var b strings.Builder
	sim := u.sim.Stats()
	fmt.Fprintf(&b, "%s   homes %d of %d   p99 publish→ack %v   Ctrl-C drains\n", time.Since(u.started).Round(time.Second), sim.Connected, sim.Homes,
		sim.LatencyP99.Round(100*time.Microsecond))
	fmt.Fprintf(&b, "rows: acknowledged %s · ClickHouse %s · Parquet %s in %s files\n", known(e.acknowledged), known(e.clickhouse),
		known(e.parquet), known(e.parquetFiles))
	fmt.Fprintf(&b, "      scores %s · alerts %s · dead letters %s\n\n", known(e.scores), known(e.alerts), known(e.dead))
	fmt.Fprintf(&b, "%-14s %-24s %-14s %12s %14s\n", "from", "stream", "to", "rows/s", "rows")
	for _, name := range sortedStreams(u.plan) {
		st := u.plan.Streams[name]
		for _, reader := range st.Readers {
			rows := r.rows(reader, name)
			if rows == 0 && strings.HasSuffix(name, ".dead") {
				continue
			}
			fmt.Fprintf(&b, "%-14s %-24s %-14s %12s %14s\n", st.Writer, name, reader, count(int64(r.of(reader, name))), count(rows))
		}
	}
	for _, n := range u.meter.Nodes() {
		if n.Restarts.Load() > 0 || n.Bad.Load() > 0 {
			fmt.Fprintf(&b, "%s: %s rows set aside, %d restarts\n", n.Name, count(n.Bad.Load()), n.Restarts.Load())
		}
	}
	if err != nil {
		fmt.Fprintf(&b, "status: %s\n", harmless(err.Error()))
	}
	return b.String()
}

// compareWait is how long the numbers may take to agree once everything has drained.
const compareWait = 10 * time.Second

// compare prints whether what the homes were told is what is stored.
func (u *up) compare(ctx context.Context, s *screen) error {
	deadline := time.Now().Add(compareWait)
	for {
		e, err := u.books.read(ctx)
		// Rows may also come from others than the homes; but fewer, or not the same in both, is never right.
		whole := err == nil && (e.clickhouse < 0 || e.parquet < 0 || e.clickhouse == e.parquet) && max(e.clickhouse, e.parquet) >= e.acknowledged
		if !whole && time.Now().Before(deadline) {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(200 * time.Millisecond):
			}
			continue
		}
		s.say("drained.  rows acknowledged %s   in ClickHouse %s   in Parquet %s (%s files)   dead letters %s   alerts %s",
			known(e.acknowledged), known(e.clickhouse), known(e.parquet), known(e.parquetFiles), known(e.dead), known(e.alerts))
		switch {
		case err != nil:
			return fmt.Errorf("compare what is stored: %w", err)
		case whole && e.acknowledged == max(e.clickhouse, e.parquet):
			s.say("equal: every acknowledged row is stored once in each.")
		case whole && e.acknowledged < 0:
			s.say("equal: what ClickHouse has and what Parquet has.")
		case whole:
			s.say("equal in ClickHouse and in Parquet, with %s rows that others than the homes have sent.", count(max(e.clickhouse, e.parquet)-e.acknowledged))
		default:
			return fmt.Errorf("rows acknowledged and rows stored differ: %d, %d in ClickHouse, %d in Parquet", e.acknowledged, e.clickhouse, e.parquet)
		}
		return nil
	}
}
