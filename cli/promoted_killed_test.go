package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/cli/clitest"
	"hearthline/ingest/identity"
	"hearthline/streams"
	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
)

// On Apache Kafka, each role a process: a shadow is promoted while hubs send, and the stage is killed with -9 when the promotion has
// begun and again when some partition has been handed over, the shadow beside it; then a canary of what was promoted, killed
// likewise. Every reading has one score. How long no score came is told.
func TestKilledWhileAVersionIsPromoted(t *testing.T) {
	kafka := apache.New()
	kafka.Settings = map[string]string{"group.min.session.timeout.ms": "500", "group.initial.rebalance.delay.ms": "0"}
	c := &clitest.Cluster{Installation: clitest.New(t), Broker: apachetest.Start(t, kafka)[0]}
	raw, err := os.ReadFile(c.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	file := edit(t, string(raw), "  every: 10s ", "  every: 500ms ")
	file = edit(t, file, "\nkafka:\n", "\nkafka:\n  session_timeout: 2s\n")
	homes := c.Homes(4, 100_000, 0)
	homes.History, homes.Interval, homes.AckTimeout = 0, 40*time.Millisecond, 5*time.Second
	if err := homes.WriteRegistry(filepath.Join(c.Data, "registry.csv")); err != nil {
		t.Fatal(err)
	}
	certs, err := identity.DevCertificates(filepath.Join(c.Data, "gateway"))
	if err != nil {
		t.Fatal(err)
	}
	clickhouse := c.StartClickHouse()
	defer clickhouse.End(t)
	for name, value := range map[string]string{
		"HEARTHLINE_KAFKA": c.Broker, "HEARTHLINE_CLICKHOUSE": c.ClickHouseTCP, "HEARTHLINE_CLICKHOUSE_USER": c.Engine.Writer.Name,
		"HEARTHLINE_CLICKHOUSE_PASSWORD": c.Engine.Writer.Password, "HEARTHLINE_MQTT": c.MQTT, "HEARTHLINE_HTTP": c.HTTP,
		"HEARTHLINE_CERTIFICATE": certs.Certificate, "HEARTHLINE_KEY": certs.Key,
		"HEARTHLINE_CREDENTIALS": filepath.Join(c.Data, "gateway", "credentials.yaml"),
	} {
		t.Setenv(name, value) // of roles, and of promote
	}
	c.Write(edit(t, file, "    to: scores\n", "    to: scores\n    shadow: {settings: {warmup: 7}}\n"))
	score := func() *clitest.Running { return c.Role("stage", "score", "--instance", "s1") }
	shadow := func() *clitest.Running { return c.Role("stage", "score-shadow", "--instance", "s2") }
	gateway, normalize, into := c.Role("gateway"), c.Role("stage", "normalize"), c.Role("sink", "clickhouse")
	first, second := score(), shadow()
	playing, enough := context.WithCancel(t.Context())
	defer enough()
	ended := clitest.Play(playing, homes)
	clitest.More(t, homes, ended, 1000)
	const handed = "handed over to the second version"

	pause := longestPause(t, c.Broker, "scores")
	promotion := c.Start("promote", "score")
	time.Sleep(50 * time.Millisecond) // somewhere in its beginning
	first.Kill()
	first = score()
	first.Expect(handed, time.Minute)
	first.Kill()
	second.Kill()
	first, second = score(), shadow()
	if code := promotion.Exit(2 * time.Minute); code != 0 || !strings.Contains(promotion.Out.String(), "score is promoted") {
		t.Fatalf("promote: exit code %d:\n%s", code, promotion.Out.String())
	}
	clitest.More(t, homes, ended, 300)
	t.Logf("a shadow is promoted, the stage killed twice in between and the shadow once: no score for %v at most", pause())
	first.Kill()
	second.Kill()

	now, err := os.ReadFile(c.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	c.Write(edit(t, string(now), "    settings: {warmup: 7}\n", "    settings: {warmup: 7}\n    canary: {percent: 40, settings: {warmup: 9}}\n"))
	first = score()
	clitest.More(t, homes, ended, 500)
	pause = longestPause(t, c.Broker, "scores")
	promotion = c.Start("promote", "score")
	first.Expect(handed, time.Minute)
	first.Kill()
	first = score()
	if code := promotion.Exit(2 * time.Minute); code != 0 || !strings.Contains(promotion.Out.String(), "score is promoted") {
		t.Fatalf("promote: exit code %d:\n%s", code, promotion.Out.String())
	}
	clitest.More(t, homes, ended, 300)
	t.Logf("a canary is promoted, the stage killed in between: no score for %v at most", pause())
	if now, err := os.ReadFile(c.Pipeline); err != nil || !strings.Contains(string(now), "    settings: {warmup: 9}\n") || strings.Contains(string(now), "canary") {
		t.Errorf("pipeline.yaml is now (%v):\n%s", err, now)
	}
	first.Kill()
	first = score() // with the new file
	enough()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	c.Eventually("readings with a number that have no score, scores with a twin, dead letters", "0\t0\t0", func() string {
		return c.Query("SELECT (SELECT count() FROM readings WHERE value IS NOT NULL AND coalesce(text, '') = '') - count(), " +
			"count() - uniqExact(home, device, metric, time, seq), (SELECT count() FROM dead) FROM scores")[0]
	})
	if want, err := homes.ExpectedRows(); err != nil || c.Query("SELECT count() >= 2000 FROM scores")[0] != "1" {
		t.Errorf("%s scores of %d rows (%v)", c.Query("SELECT count() FROM scores")[0], want, err)
	}
	for _, r := range []*clitest.Running{gateway, normalize, first, into} {
		r.Terminate()
	}
}

// longestPause measures the longest time in which nothing came to a stream, until it is called.
func longestPause(t *testing.T, broker, stream string) (end func() time.Duration) {
	t.Helper()
	cfg := streams.New()
	cfg.Brokers = []string{broker}
	client, err := streams.Dial(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var work conc.WaitGroup
	var longest time.Duration
	work.Go(func() {
		defer client.Close()
		last, since := int64(-1), time.Now()
		for ctx.Err() == nil {
			ends, err := client.Ends(ctx, []string{stream})
			if err != nil {
				continue
			}
			n := int64(0)
			for _, end := range ends[stream] {
				n += end
			}
			if longest = max(longest, time.Since(since)); n != last {
				last, since = n, time.Now()
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	t.Cleanup(cancel)
	return func() time.Duration { cancel(); work.Wait(); return longest.Round(time.Millisecond) }
}
