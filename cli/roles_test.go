package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearthline/ingest"
	"hearthline/sinks/clickhouse/embedded"
	"hearthline/sinks/parquet"
	embeddedbroker "hearthline/streams/embedded"
)

// server runs a part of the world beside the roles, which can go away and come back.
type server struct {
	stop context.CancelFunc
	done chan error
}

func serve(run func(context.Context) error) *server {
	ctx, stop := context.WithCancel(context.Background())
	s := &server{stop: stop, done: make(chan error, 1)}
	go func() { s.done <- run(ctx) }()
	return s
}

func (s *server) end(t *testing.T) {
	t.Helper()
	s.stop()
	if err := <-s.done; err != nil {
		t.Error(err)
	}
}

// cluster is every role as a process of its own, with a broker and a ClickHouse that are not theirs.
type cluster struct {
	*installation
	env    []string
	broker string
	engine embedded.Endpoints
}

func (c *cluster) startBroker() *server {
	return serve(func(ctx context.Context) error {
		b := embeddedbroker.New()
		b.Dir, b.Addr = filepath.Join(c.dir, "broker"), c.broker
		return b.Run(ctx)
	})
}

func (c *cluster) startClickHouse() *server {
	ready := make(chan embedded.Endpoints, 1)
	s := serve(func(ctx context.Context) error {
		e := embedded.New(filepath.Join(c.data, "clickhouse"))
		e.Executable, e.HTTPAddr, e.TCPAddr = c.binary, c.chHTTP, c.chTCP
		e.Ready = func(at embedded.Endpoints) { ready <- at }
		return e.Run(ctx)
	})
	select {
	case c.engine = <-ready:
	case err := <-s.done:
		c.t.Fatal(err)
	case <-time.After(3 * time.Minute):
		c.t.Fatal("ClickHouse does not start")
	}
	return s
}

func (c *cluster) role(args ...string) *running {
	c.t.Helper()
	r := &running{t: c.t, out: &lockedBuffer{}, done: make(chan struct{})}
	r.cmd = exec.Command(c.binary, append(args, "--pipeline", c.pipeline, "--data", c.data, "--ops", freeAddr(c.t))...)
	r.cmd.Env = append(os.Environ(), c.env...)
	c.run(r, args)
	return r
}

// The same pipeline.yaml as processes of its own: started before there is a broker or a ClickHouse; then a stage and
// a sink are killed, a stage runs twice and once again, the broker goes away and comes back, and so does ClickHouse. Every
// acknowledged row is in both stores once.
func TestRolesLiveThroughTheWorldsFailures(t *testing.T) {
	c := &cluster{installation: newInstallation(t), broker: freeAddr(t)}
	homes := c.homes(12, 1200, 1500)
	homes.History, homes.Interval = 0, 40*time.Millisecond
	if err := homes.WriteRegistry(filepath.Join(c.data, "registry.csv")); err != nil {
		t.Fatal(err)
	}
	certs, err := ingest.DevCertificates(filepath.Join(c.data, "gateway"))
	if err != nil {
		t.Fatal(err)
	}
	// The engine makes its users at its first start; the roles are started when it is away again.
	c.startClickHouse().end(t)
	c.env = []string{
		"HEARTHLINE_KAFKA=" + c.broker, "HEARTHLINE_CLICKHOUSE=" + c.chTCP, "HEARTHLINE_CLICKHOUSE_USER=" + c.engine.Writer.Name,
		"HEARTHLINE_CLICKHOUSE_PASSWORD=" + c.engine.Writer.Password, "HEARTHLINE_MQTT=" + c.mqtt, "HEARTHLINE_HTTP=" + c.http,
		"HEARTHLINE_CERTIFICATE=" + certs.Certificate, "HEARTHLINE_KEY=" + certs.Key,
		"HEARTHLINE_CREDENTIALS=" + filepath.Join(c.data, "gateway", "credentials.yaml"), "HEARTHLINE_INSTANCE=g1",
	}
	gateway := c.role("gateway")
	normalize := c.role("stage", "normalize")
	features := c.role("stage", "features")
	score, alert := c.role("stage", "score"), c.role("stage", "alert")
	intoClickHouse, intoParquet, webhook := c.role("sink", "clickhouse"), c.role("sink", "parquet"), c.role("sink", "webhook")
	for _, r := range []*running{gateway, normalize, intoParquet} {
		r.expect("not ready, waiting", 30*time.Second) // says what it waits for, and does not end
	}

	broker := c.startBroker()
	clickhouse := c.startClickHouse()
	ended := play(t.Context(), homes)
	more := func(rows int64) { // so many more rows are acknowledged
		t.Helper()
		want, deadline := homes.Stats().Acknowledged+rows, time.Now().Add(2*time.Minute)
		for homes.Stats().Acknowledged < want {
			select {
			case err := <-ended:
				t.Fatalf("the homes' work ended too early for the test: %v, %+v", err, homes.Stats())
			case <-time.After(20 * time.Millisecond):
			}
			if time.Now().After(deadline) {
				t.Fatalf("no %d rows more within 2 minutes: %+v", rows, homes.Stats())
			}
		}
	}
	more(2000)
	normalize.kill()
	intoParquet.kill()
	normalize, intoParquet = c.role("stage", "dedupe"), c.role("sink", "parquet") // the group's other name
	second := c.role("stage", "normalize")                                        // now two share the partitions
	more(2000)
	broker.end(t)
	time.Sleep(2 * time.Second) // an outage takes time; nothing can be polled for
	broker = c.startBroker()
	more(2000)
	second.terminate() // and one again
	clickhouse.end(t)
	more(2000)
	clickhouse = c.startClickHouse()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	want, err := homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	c.eventually("rows in ClickHouse", strconv.FormatInt(want, 10), func() string { return c.query("SELECT count() FROM readings")[0] })
	c.eventually("rows in Parquet", strconv.FormatInt(want, 10), func() string {
		n, err := parquet.Count(t.Context(), c.parquetStore(), "readings")
		if err != nil {
			return err.Error()
		}
		return strconv.FormatInt(n.Rows, 10)
	})
	c.eventually("scores", c.query("SELECT count() FROM readings WHERE metric NOT IN ('motion', 'contact')")[0], func() string {
		return c.query("SELECT uniqExact(home, device, metric, seq) FROM scores WHERE metric NOT IN ('motion', 'contact')")[0]
	})
	for what, sql := range map[string]string{
		"readings": "SELECT count() - uniqExact(home, device, metric, seq) FROM readings",
		"scores":   "SELECT count() - uniqExact(home, device, metric, seq) FROM scores",
		"features": "SELECT count() - uniqExact(home, device, metric, window, time) FROM features",
		"dead":     "SELECT count() FROM dead",
	} {
		if got := c.query(sql)[0]; got != "0" {
			t.Errorf("%s that are there twice, or should not be there: %s", what, got)
		}
	}
	for _, r := range []*running{gateway, normalize, features, score, alert, intoClickHouse, intoParquet, webhook} {
		r.terminate()
	}
	broker.end(t)
	clickhouse.end(t)
	t.Logf("%d rows", want)
}

// eventually waits until ask gives want.
func (i *installation) eventually(what, want string, ask func() string) {
	i.t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	got := ask()
	for got != want {
		if time.Now().After(deadline) {
			i.t.Fatalf("%s: %s, want %s", what, got, want)
		}
		time.Sleep(100 * time.Millisecond)
		got = ask()
	}
}

// terminate is what Kubernetes does to a pod: the role finishes, leaves and exits with 0.
func (r *running) terminate() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		r.t.Fatalf("%s: %v", strings.Join(r.cmd.Args[1:3], " "), err)
	}
	if code := r.exit(time.Minute); code != 0 {
		r.t.Errorf("%s: exit code %d after SIGTERM", fmt.Sprint(r.cmd.Args[1:3]), code)
	}
}
