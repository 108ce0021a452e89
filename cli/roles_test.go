package cli

import (
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"hearthline/cli/clitest"
	"hearthline/ingest/identity"
	"hearthline/sinks/parquet"
)

// The same pipeline.yaml as processes of its own: started before there is a broker or a ClickHouse; then a stage and
// a sink are killed, a stage runs twice and once again, the broker goes away and comes back, and so does ClickHouse. Every
// acknowledged row is in both stores once.
func TestRolesLiveThroughTheWorldsFailures(t *testing.T) {
	c := &clitest.Cluster{Installation: clitest.New(t), Broker: clitest.FreeAddr(t)}
	homes := c.Homes(12, 1200, 1500)
	homes.History, homes.Interval = 0, 40*time.Millisecond
	if err := homes.WriteRegistry(filepath.Join(c.Data, "registry.csv")); err != nil {
		t.Fatal(err)
	}
	certs, err := identity.DevCertificates(filepath.Join(c.Data, "gateway"))
	if err != nil {
		t.Fatal(err)
	}
	// The engine makes its users at its first start; the roles are started when it is away again.
	c.StartClickHouse().End(t)
	c.Env = []string{
		"HEARTHLINE_KAFKA=" + c.Broker, "HEARTHLINE_CLICKHOUSE=" + c.ClickHouseTCP, "HEARTHLINE_CLICKHOUSE_USER=" + c.Engine.Writer.Name,
		"HEARTHLINE_CLICKHOUSE_PASSWORD=" + c.Engine.Writer.Password, "HEARTHLINE_MQTT=" + c.MQTT, "HEARTHLINE_HTTP=" + c.HTTP,
		"HEARTHLINE_CERTIFICATE=" + certs.Certificate, "HEARTHLINE_KEY=" + certs.Key,
		"HEARTHLINE_CREDENTIALS=" + filepath.Join(c.Data, "gateway", "credentials.yaml"),
	}
	gateway := c.Role("gateway", "--instance", "g1")
	normalize := c.Role("stage", "normalize", "--instance", "n1")
	features := c.Role("stage", "features")
	score, alert := c.Role("stage", "score"), c.Role("stage", "alert")
	intoClickHouse, intoParquet, webhook := c.Role("sink", "clickhouse"), c.Role("sink", "parquet", "--instance", "p1"), c.Role("sink", "webhook")
	for _, r := range []*clitest.Running{gateway, normalize, intoParquet} {
		r.Expect("not ready, waiting", 30*time.Second) // says what it waits for, and does not end
	}

	broker := c.StartBroker()
	clickhouse := c.StartClickHouse()
	ended := clitest.Play(t.Context(), homes)
	more := func(rows int64) { t.Helper(); clitest.More(t, homes, ended, rows) }

	more(2000)
	normalize.Kill()
	intoParquet.Kill()
	normalize, intoParquet = c.Role("stage", "dedupe", "--instance", "n1"), c.Role("sink", "parquet", "--instance", "p1") // the group's other name
	second := c.Role("stage", "normalize")                                                                                // now two share the partitions
	more(2000)
	broker.End(t)
	time.Sleep(2 * time.Second) // an outage takes time; nothing can be polled for
	broker = c.StartBroker()
	more(2000)
	second.Terminate() // and one again
	clickhouse.End(t)
	more(2000)
	clickhouse = c.StartClickHouse()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	want, err := homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	c.Eventually("rows in ClickHouse", strconv.FormatInt(want, 10), func() string { return c.Query("SELECT count() FROM readings")[0] })
	c.Eventually("rows in Parquet", strconv.FormatInt(want, 10), func() string {
		n, err := parquet.Count(t.Context(), c.ParquetStore(), "readings")
		if err != nil {
			return err.Error()
		}
		return strconv.FormatInt(n.Rows, 10)
	})
	c.Eventually("scores", c.Query("SELECT count() FROM readings WHERE metric NOT IN ('motion', 'contact', 'occupied')")[0], func() string {
		return c.Query("SELECT uniqExact(home, device, metric, seq) FROM scores WHERE metric NOT IN ('motion', 'contact', 'occupied')")[0]
	})
	for what, sql := range map[string]string{
		"readings": "SELECT count() - uniqExact(home, device, metric, seq) FROM readings",
		"scores":   "SELECT count() - uniqExact(home, device, metric, seq) FROM scores",
		"features": "SELECT count() - uniqExact(home, device, metric, window, time) FROM features",
		"dead":     "SELECT count() FROM dead",
	} {
		if got := c.Query(sql)[0]; got != "0" {
			t.Errorf("%s that are there twice, or should not be there: %s", what, got)
		}
	}
	for _, r := range []*clitest.Running{gateway, normalize, features, score, alert, intoClickHouse, intoParquet, webhook} {
		r.Terminate()
	}
	broker.End(t)
	clickhouse.End(t)
	t.Logf("%d rows", want)
}
