package console

import (
	"context"
	"strings"
	"testing"
	"time"

	"hearthline/flow"
	"hearthline/pipeline/run"
)

// play lets a world run for some seconds before a server's eyes, and gives the status at the end.
func play(w *world, seconds int, each func(second int)) *Status {
	s := demo(w)
	s.init()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i := range seconds {
		if each != nil {
			each(i)
		}
		w.step(now, 1)
		lag, _ := w.lags(context.Background())
		s.sampler.add(sample{at: now, nodes: w.statuses(), lag: lag})
		now = now.Add(time.Second)
	}
	return s.status()
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		name      string
		seconds   int
		before    func(*world)
		each      func(*world, int)
		level     string
		node      string
		partition int32
		says      []string
	}{
		{
			name: "all well", seconds: 30, level: "ok", says: []string{"Moving: 1,200 rows a second come in; furthest from now is "},
		},
		{
			name: "nothing yet", seconds: 30, before: func(w *world) { w.rate = 0 }, level: "idle", says: []string{"No row has come in yet"},
		},
		{
			name: "nothing any more", seconds: 40, level: "idle", says: []string{"All caught up. No rows come in"},
			each: func(w *world, second int) {
				if second == 20 {
					w.rate = 0
				}
			},
		},
		{
			name: "a sink stands still on one partition", seconds: 30, level: "stuck", node: "clickhouse", partition: 2,
			before: func(w *world) { w.stuck["clickhouse readings/2"] = true },
			says:   []string{"clickhouse stands still on readings/2: 630 messages wait and none was taken for 29 s."},
		},
		{
			name: "a stage that took some, then stood still", seconds: 60, level: "stuck", node: "normalize", partition: 0,
			each: func(w *world, second int) { w.stuck["normalize raw/0"] = second >= 30 },
			says: []string{"normalize stands still on raw/0", "none was taken for 30 s"},
		},
		{
			name: "two of them", seconds: 30, level: "stuck", node: "clickhouse", partition: 3,
			before: func(w *world) { w.stuck["clickhouse readings/3"], w.stuck["parquet scores/1"] = true, true },
			each:   func(w *world, second int) { w.stuck["parquet scores/1"] = second > 0 },
			says:   []string{"clickhouse stands still on readings/3", "One more edge is like that."},
		},
		{
			name: "a stage falls behind", seconds: 30, level: "slow", node: "features", partition: 1,
			each: func(w *world, second int) { w.behind("features", "readings", second*10) },
			says: []string{"features falls behind on readings: 580 messages wait, 20.0 more each second; most of them on partition 1 (290)."},
		},
		{
			name: "a stage catches up, far behind", seconds: 30, level: "slow", node: "features", partition: 1,
			each: func(w *world, second int) {
				w.behind("features", "readings", 1000-second*10)
				w.late("features", "readings", time.Minute)
			},
			says: []string{"1,420 messages wait, and it catches up: 71 s to go"},
		},
		{
			name: "a gateway is silent", seconds: 30, level: "slow", node: "normalize", partition: 3,
			each: func(w *world, second int) { w.quiet("normalize+dedupe+enrich", "raw", 3, second) },
			says: []string{"Nothing came on raw/3 for 30 s, not even a heartbeat"},
		},
		{
			name: "a node is started again and again", seconds: 30, level: "stuck", node: "parquet",
			each: func(w *world, second int) { w.extra["parquet"] = run.NodeStatus{Restarts: int64(second / 10)} },
			says: []string{"parquet ended with an error and was started again 2 times in the last minute"},
		},
		{
			name: "a sink's server is away", seconds: 30, level: "stuck", node: "webhook",
			before: func(w *world) {
				for _, p := range []string{"0", "1", "2", "3"} {
					w.stuck["webhook alerts/"+p] = true
				}
			},
			each: func(w *world, second int) { w.extra["webhook"] = run.NodeStatus{Retries: int64(second)} },
			says: []string{"webhook waits for the world: it tried again 29 times"},
		},
		{
			name: "retries that pass are no trouble", seconds: 30, level: "ok",
			each: func(w *world, second int) { w.extra["clickhouse"] = run.NodeStatus{Retries: int64(second)} },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(homesPlan())
			w.steady = true
			if c.before != nil {
				c.before(w)
			}
			status := play(w, c.seconds, func(second int) {
				if c.each != nil {
					c.each(w, second)
				}
			})
			v := status.Verdict
			if v.Level != c.level || v.Node != c.node || v.Partition != c.partition {
				t.Errorf("%+v; want %s, %q, partition %d", v, c.level, c.node, c.partition)
			}
			for _, want := range c.says {
				if !strings.Contains(v.Text, want) {
					t.Errorf("says %q; want %q", v.Text, want)
				}
			}
		})
	}
}

func TestRatesAreOfTheLastSeconds(t *testing.T) {
	w := newWorld(homesPlan())
	w.refuse["score"] = 0.01
	status := play(w, 70, func(second int) {
		w.rate = 1000
		if second >= 60 {
			w.rate = 200
		}
	})
	for _, s := range status.Streams {
		if s.Name == "readings" && (s.Rate != 200 || s.Rows != 62_000) {
			t.Errorf("%+v; want 200 a second, 62000", s)
		}
	}
	for _, n := range status.Nodes {
		if n.Name == "score" && (n.InRate != 200 || n.BadRate < 1.5 || n.BadRate > 2.5 || n.Bad != 620) {
			t.Errorf("score: in %v, bad %v a second, %d bad", n.InRate, n.BadRate, n.Bad)
		}
	}
}

func TestHistoryIsTheLastMinute(t *testing.T) {
	w := newWorld(homesPlan())
	s := demo(w)
	s.init()
	now := time.Now()
	for range 200 {
		w.step(now, 1)
		s.sampler.add(sample{at: now, nodes: w.statuses()})
		now = now.Add(time.Second)
	}
	if n := len(s.sampler.samples); n != keepSamples {
		t.Errorf("%d samples are kept; want %d", n, keepSamples)
	}
	for _, h := range s.sampler.history(s.graph) {
		if h.Stream == "raw" && (len(h.Rates) != 60 || h.Rates[59] != 1200) {
			t.Errorf("raw: %v", h.Rates)
		}
	}
}

// A writer that runs in another process is known by its readers.
func TestStreamsWrittenElsewhere(t *testing.T) {
	w := newWorld(homesPlan())
	w.step(time.Now(), 1)
	s := sample{}
	for _, n := range w.statuses() {
		if n.Name == "clickhouse" {
			s.nodes = append(s.nodes, n)
		}
	}
	g := newGraph(w.plan)
	if rows := streamRows(g.stream("readings"))(s); rows != 1200 {
		t.Errorf("%d rows; want 1200", rows)
	}
	gateway := sample{nodes: []run.NodeStatus{
		{Name: "gateway/a", Edges: []run.EdgeStatus{{Stream: "raw", Direction: "out", Rows: 3}}},
		{Name: "gateway/b", Edges: []run.EdgeStatus{{Stream: "raw", Direction: "out", Rows: 4}}},
	}}
	if rows := streamRows(g.stream("raw"))(gateway); rows != 7 {
		t.Errorf("%d rows of two gateways; want 7", rows)
	}
}

// A process that runs one sink does not say that nothing comes in.
func TestVerdictOfARole(t *testing.T) {
	w := newWorld(homesPlan())
	s := demo(w)
	only := func() (nodes []run.NodeStatus) {
		for _, n := range w.statuses() {
			if n.Name == "webhook" {
				nodes = append(nodes, n)
			}
		}
		return nodes
	}
	s.init()
	for i := range 10 {
		w.step(time.Now(), 1)
		s.sampler.add(sample{at: time.Unix(int64(i), 0), nodes: only()})
	}
	if v := s.status().Verdict; v.Text != "Moving. This process runs webhook: 1,200 rows a second." {
		t.Errorf("%+v", v)
	}
}

func TestReplayedTimeIsNoAge(t *testing.T) {
	w := newWorld(homesPlan())
	w.step(time.Now(), 1)
	for at := range w.marks {
		w.marks[at] = flow.EndOfTime
	}
	s := demo(w)
	s.init()
	s.sample(time.Now())
	for _, e := range s.status().Edges {
		if e.WatermarkAge != -1 {
			t.Fatalf("%+v", e)
		}
	}
}

func TestWords(t *testing.T) {
	for seconds, want := range map[float64]string{0: "0.0 s", 9.94: "9.9 s", 61: "61 s", 600: "10 min", 7300: "2 h", 864000: "10 days"} {
		if got := age(seconds); got != want {
			t.Errorf("age(%v) = %q; want %q", seconds, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000", -100: "-100"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) = %q; want %q", n, got, want)
		}
	}
}

func TestAgreements(t *testing.T) {
	got := agreements([]Number{
		{Label: "sent", Value: 5, Same: "a"}, {Label: "other", Value: 1}, {Label: "kept", Value: 5, Same: "a"}, {Label: "alone", Value: 2, Same: "b"},
	})
	if len(got) != 1 || got[0] != (Agreement{Same: "a", Equal: true}) {
		t.Errorf("%+v", got)
	}
}
