package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/blobs"
	"hearthline/cli/clitest"
	"hearthline/cli/replay"
	"hearthline/flow"
	"hearthline/sinks/parquet"
)

// What ran live goes through the same stages again, from Parquet and from the stream, and is equal to the bit.
func TestReplayMakesWhatWasMadeLive(t *testing.T) {
	t.Parallel() // it waits for homes and processes
	i := clitest.New(t)
	homes := i.Homes(10, 300, 1200)
	homes.Window = 64
	homes.Faults.Offline, homes.Faults.Reorder, homes.Faults.Duplicate = 0.002, 0.01, 0.01
	homes.OfflineFor = 3 * time.Second
	up := i.Up("--no-homes")
	ended := clitest.Play(t.Context(), homes)
	for homes.Stats().Acknowledged < 2000 {
		time.Sleep(20 * time.Millisecond)
	}
	up.Kill() // live includes a replay of its own
	up = i.Up("--no-homes")
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	// While it runs: files and ClickHouse.
	i.Eventually("readings in Parquet and in ClickHouse", "equal", func() string {
		n, err := parquet.Count(t.Context(), i.ParquetStore(), "readings")
		if rows := i.Query("SELECT count() FROM readings")[0]; err != nil || rows != fmt.Sprint(n.Rows) {
			return fmt.Sprintf("%d and %s, %v", n.Rows, rows, err)
		}
		return "equal"
	})
	r := i.Start("replay", "--name", "live", "--from", "parquet:readings", "--stage", "score", "--clickhouse", "--clickhouse-tcp", i.ClickHouseTCP)
	if code := r.Exit(2 * time.Minute); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	made := kept(t, i, "live", "scores")
	if rows := i.Query("SELECT count() FROM hearthline_replay_live.scores")[0]; rows != fmt.Sprint(made) || made < 1000 {
		t.Errorf("%d scores in files, %s in the replay's own table", made, rows)
	}
	half := i.Query("SELECT formatDateTime(quantileExact(0.5)(time), '%Y-%m-%dT%H:%i:%S', 'UTC') FROM readings")[0]
	since, err := strconv.ParseInt(i.Query("SELECT count() FROM readings WHERE time >= parseDateTime64BestEffort('" + half + "Z', 6, 'UTC')")[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	up.Stop()

	// Windows that were open at the end of the live run are closed, so that there is more in the replay, and nothing else.
	r = i.Start("replay", "--name", "files", "--from", "parquet:"+filepath.Join(i.Data, "parquet", "readings"), "--close", "--compare", "features,scores")
	if code := r.Exit(2 * time.Minute); code != exitChanges && code != exitOK {
		t.Fatalf("exit code %d", code)
	}
	for _, stream := range []string{"features", "scores"} {
		told(t, r.Out.String(), stream, "different", 0)
		told(t, r.Out.String(), stream, "only live", 0)
		live, err := parquet.Count(t.Context(), i.ParquetStore(), stream)
		if err != nil || live.Rows < 1000 {
			t.Fatalf("%d rows of %s live: too few for a test (%v)", live.Rows, stream, err)
		}
		told(t, r.Out.String(), stream, "equal to the bit", live.Rows)
	}
	told(t, r.Out.String(), "scores", "only in the replay", 0)

	// From Kafka, whose broker nobody runs by now, from the first stage on.
	r = i.Start("replay", "--name", "stream", "--from", "raw", "--compare", "readings,scores")
	if code := r.Exit(2 * time.Minute); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	if n := kept(t, i, "stream", "readings"); n < 1000 {
		t.Errorf("%d readings from the stream", n)
	}
	// From a time, from the first offset, and from a later one.
	for _, c := range []struct {
		name        string
		flags       []string
		least, most int64
	}{
		{"since", []string{"--from", "raw", "--since", half + "Z"}, since, since},
		{"first", []string{"--from", "raw@0"}, kept(t, i, "stream", "readings"), kept(t, i, "stream", "readings")},
		{"offset", []string{"--from", "raw@10"}, 1, kept(t, i, "stream", "readings") - 10},
	} {
		r = i.Start(append([]string{"replay", "--name", c.name, "--stage", "normalize", "--stage", "dedupe", "--stage", "enrich"}, c.flags...)...)
		if code := r.Exit(2 * time.Minute); code != 0 {
			t.Fatalf("%s: exit code %d", c.name, code)
		}
		if n := kept(t, i, c.name, "readings"); n < c.least || n > c.most {
			t.Errorf("%q: %d readings, want %d to %d", c.flags, n, c.least, c.most)
		}
	}
	listed := i.Start("replay", "list")
	if code := listed.Exit(time.Minute); code != 0 || strings.Count(listed.Out.String(), "finished") != 6 {
		t.Errorf("exit code %d, list:\n%s", code, listed.Out.String())
	}
	gone := i.Start("replay", "delete", "stream")
	if code := gone.Exit(time.Minute); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Stat(replay.Dir(i.Data, "stream")); !os.IsNotExist(err) {
		t.Errorf("deleted, and there: %v", err)
	}
}

// kept is how many rows a replay has made.
func kept(t *testing.T, i *clitest.Installation, name, stream string) int64 {
	t.Helper()
	n, err := parquet.Count(t.Context(), made(t, i, name), stream)
	if err != nil {
		t.Fatal(err)
	}
	return n.Rows
}

func made(t *testing.T, i *clitest.Installation, name string) blobs.Store {
	t.Helper()
	store, err := blobs.Dir(replay.ParquetDir(replay.Dir(i.Data, name)))
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// told checks a line of what --compare says.
func told(t *testing.T, out, stream, line string, want int64) {
	t.Helper()
	_, part, ok := strings.Cut(out, "\n"+stream+", live and replayed")
	m := regexp.MustCompile(`\n  ` + line + ` +(\S+)\n`).FindStringSubmatch(part)
	if !ok || m == nil {
		t.Fatalf("nothing is said of %q of %s:\n%s", line, stream, out)
	}
	if m[1] != count(want) {
		t.Errorf("%s: %s is %s, want %s", stream, line, m[1], count(want))
	}
}

// A replay that is killed and taken up again has made what one has that was not: each row, once, equal to the bit.
func TestReplayThatIsKilledGoesOn(t *testing.T) {
	i := clitest.New(t)
	text, err := os.ReadFile(i.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	i.Write(strings.Replace(string(text), "every: 10s", "every: 100ms", 1))
	history := filepath.Join(i.Dir, "history")
	writeHistory(t, history, 4, 8, 12_500)
	if err := os.MkdirAll(i.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(i.Data, "registry.csv"), []byte("home,device,room,kind,model,zone\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"replay", "--name", "killed", "--from", "parquet:" + history + "/raw"}
	kills := 0
	for range 3 {
		r := i.Start(args...)
		before := checkpoints(t, i, "killed")
		for deadline := time.Now().Add(time.Minute); checkpoints(t, i, "killed") == before; {
			if time.Now().After(deadline) {
				t.Fatalf("no checkpoint within a minute:\n%s", r.Out.String())
			}
			time.Sleep(5 * time.Millisecond)
		}
		r.Kill()
		if j, err := replay.Read(replay.Dir(i.Data, "killed")); err != nil || !j.Finished.IsZero() {
			break // too fast for another kill
		}
		kills++
	}
	if kills == 0 {
		t.Fatal("it was never killed in the middle")
	}
	for name, from := range map[string]string{"killed": args[4], "whole": args[4]} {
		r := i.Start("replay", "--name", name, "--from", from)
		if code := r.Exit(3 * time.Minute); code != 0 {
			t.Fatalf("%s: exit code %d", name, code)
		}
	}
	for _, stream := range []string{"readings", "features", "scores", "alerts"} {
		c := replay.Comparison{Stream: stream, Live: made(t, i, "whole"), Replay: made(t, i, "killed"), Partitions: 4}
		d, err := c.Compare(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d.Differs() || stream != "alerts" && d.Equal < 1000 {
			t.Errorf("%s, after %d kills: %+v", stream, kills, d)
		}
	}
	if n := kept(t, i, "killed", "readings"); n != 4*8*12_500 {
		t.Errorf("%d readings, want each of %d once", n, 4*8*12_500)
	}
}

// checkpoints says how many commits name a checkpoint, or how they changed: the names of the files of a replay's tasks.
func checkpoints(t *testing.T, i *clitest.Installation, name string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(replay.Dir(i.Data, name), "checkpoints", "checkpoints", "*", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(files)
}

// writeHistory makes files as the Parquet sink makes them: raw events of a home a partition, ranges of rows each.
func writeHistory(t *testing.T, dir string, partitions, ranges, rows int) {
	t.Helper()
	store, err := blobs.Dir(dir)
	if err != nil {
		t.Fatal(err)
	}
	sink := parquet.New()
	sink.Store = store
	if err := sink.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	homes := homesOf(partitions)
	begin := flow.MicrosOf(time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC))
	for p := range partitions {
		b := flow.NewEventBuilder()
		for r := range ranges {
			for k := range rows {
				n := int64(r*rows + k)
				at := begin.Add(time.Duration(n) * 40 * time.Millisecond)
				b.Append(&flow.Event{Time: at, Received: at.Add(time.Duration(n%700) * time.Millisecond / 1000), Home: homes[p], Device: fmt.Sprintf("d%d", n%50), Metric: "temperature",
					Value: 20 + float64((n*7919)%1000)/200, HasValue: true, Unit: "°C", Seq: n/50 + 1, HasSeq: true})
			}
			rec, _ := b.Record()
			at := flow.Range{Stream: "raw", StreamID: "k1", Partition: int32(p), First: int64(r * 10), Last: int64(r*10 + 9)}
			if err := sink.Write(t.Context(), at, []arrow.Record{rec}); err != nil {
				t.Fatal(err)
			}
			rec.Release()
		}
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
}

// homesOf is a home for each partition.
func homesOf(partitions int) []string {
	homes := make([]string, partitions)
	for n, missing := 0, partitions; missing > 0; n++ {
		home := fmt.Sprintf("home-%d", n)
		if p := flow.PartitionOf(home, partitions); homes[p] == "" {
			homes[p] = home
			missing--
		}
	}
	return homes
}

// A replay says what is wrong with its flags, and what it was asked for may not change under it.
func TestReplayRefuses(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	i := clitest.New(t)
	history := filepath.Join(i.Dir, "history")
	writeHistory(t, history, 1, 1, 10)
	from := "parquet:" + history + "/raw"
	for _, c := range []struct {
		want string
		args []string
	}{
		{"give the replay a --name", nil},
		{"is called by 1 to 40", []string{"--name", "../x"}},
		{"say --from where", []string{"--name", "a"}},
		{`no stream "elsewhere"`, []string{"--name", "a", "--from", "elsewhere"}},
		{"nothing of this pipeline has run", []string{"--name", "a", "--from", "raw"}},
		{"never reaches Kafka, since normalize+dedupe+enrich run together", []string{"--name", "a", "--from", "clean"}},
		{"no such stage", []string{"--name", "a", "--from", from, "--stage", "scor"}},
		{"score reads readings too", []string{"--name", "a", "--from", from, "--stage", "score"}},
		{"there is nothing of readings in", []string{"--name", "a", "--from", "parquet:" + history + "/readings"}},
		{"there is nothing of raw in", []string{"--name", "a", "--from", from, "--since", "2027-01-01"}},
		{"want a time such as", []string{"--name", "a", "--from", from, "--since", "yesterday"}},
		{"is not before", []string{"--name", "a", "--from", from, "--since", "2026-03-02", "--until", "2026-03-01"}},
		{"does not keep it", []string{"--name", "a", "--from", from, "--compare", "alerts"}},
		{"no such file or directory", []string{"--name", "a", "--from", "parquet:" + i.Dir + "/nowhere/raw"}},
	} {
		r := i.Start(append([]string{"replay"}, c.args...)...)
		if code := r.Exit(time.Minute); code != exitUsage || !strings.Contains(r.Out.String(), c.want) {
			t.Errorf("%q: exit code %d, want 2 and %q:\n%s", c.args, code, c.want, r.Out.String())
		}
	}
	if r := i.Start("replay", "--name", "b", "--from", from, "--stage", "normalize"); r.Exit(time.Minute) != 0 {
		t.Fatal("the replay b failed")
	}
	if n := kept(t, i, "b", "clean"); n != 10 { // a stream that never reaches Kafka live
		t.Errorf("%d rows of clean, want 10", n)
	}
	r := i.Start("replay", "--name", "b", "--from", from)
	if code := r.Exit(time.Minute); code != exitUsage || !strings.Contains(r.Out.String(), "was begun with other flags") {
		t.Errorf("exit code %d:\n%s", code, r.Out.String())
	}
}
