package python

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// workers gives what runs stages in tests. Environments are kept between runs.
func workers(t *testing.T) (*Workers, *lines) {
	t.Helper()
	if _, err := exec.LookPath("python3"); err != nil {
		if os.Getenv("CI") == "" {
			t.Skip("NOT TESTED: there is no python3")
		}
		t.Fatal("there is no python3; .ci/install-tools installs it")
	}
	w, log := New(""), &lines{}
	w.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.Max = 2
	return w, log
}

// lines is a log that can be looked at while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// author is a folder of stages that a test writes.
type author struct {
	t       *testing.T
	workers *Workers
	log     *lines
	dir     string
}

func newAuthor(t *testing.T) *author {
	w, log := workers(t)
	return &author{t: t, workers: w, log: log, dir: t.TempDir()}
}

func (a *author) write(name, text string) {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		a.t.Fatal(err)
	}
}

// stage writes a stage and gives an instance with settings.
func (a *author) stage(code, settings string) *Stage {
	a.t.Helper()
	a.write("it/stage.py", code)
	found, err := a.workers.Stages(a.dir)
	if err != nil || found["it"] == nil {
		a.t.Fatal(found, err)
	}
	s := found["it"]().(*Stage)
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(settings), &n); err != nil {
		a.t.Fatal(err)
	}
	if len(n.Content) == 1 {
		if err := s.UnmarshalYAML(n.Content[0]); err != nil {
			a.t.Fatal(err)
		}
	}
	return s
}

func (a *author) open(code, settings string) *Stage {
	a.t.Helper()
	s := a.stage(code, settings)
	if err := s.Open(a.t.Context()); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { s.Close() })
	return s
}

// events are n rows of the pipeline's own schema, with values 0, 1, 2 …
func events(n int) arrow.Record {
	b := flow.NewEventBuilder()
	for i := range n {
		e := flow.Event{Time: flow.Micros(1_700_000_000_000_000 + i), Received: 1_700_000_001_000_000, Home: fmt.Sprintf("home%d", i%3), Device: "lamp", Metric: "power",
			Value: float64(i), HasValue: true, Seq: int64(i), HasSeq: true}
		if i%2 == 0 {
			e.Unit, e.Attributes = "W", []flow.Attribute{{Name: "room", Value: "kitchen"}}
		}
		b.Append(&e)
	}
	rec, _ := b.Record()
	return rec
}

func (a *author) process(s *Stage, n int) ([]flow.Output, error) {
	a.t.Helper()
	rec := events(n)
	defer rec.Release()
	out, err := s.Process(a.t.Context(), rec)
	a.t.Cleanup(func() {
		for _, o := range out {
			o.Record.Release()
		}
	})
	return out, err
}

// TestEveryColumnComesBack gives a batch through: what Python has is what Go has, schema, dictionaries, nulls, maps and all.
func TestEveryColumnComesBack(t *testing.T) {
	a := newAuthor(t)
	s := a.open("def process(batch):\n    return {'same': batch, 'none': batch.slice(0, 0)}\n", "")
	for _, n := range []int{0, 1, 5000} {
		in := events(n)
		defer in.Release()
		out, err := a.process(s, n)
		if err != nil || len(out) != 2 || out[0].To != "same" || out[1].To != "none" || out[1].Record.NumRows() != 0 {
			t.Fatal(out, err)
		}
		if got := out[0].Record; !got.Schema().Equal(in.Schema()) || !array.RecordEqual(got, in) {
			t.Errorf("%d rows: %v came back as %v", n, in.Schema(), got.Schema())
		}
	}
}

const above = `
import pyarrow as pa
import pyarrow.compute as pc

def process(readings: pa.RecordBatch, above: float = 2.0, only: list[str] | None = None) -> pa.RecordBatch:
    print("rows:", readings.num_rows)
    keep = pc.greater(readings["value"], above)
    if only:
        keep = pc.and_(keep, pc.is_in(readings["home"].cast(pa.string()), pa.array(only)))
    return readings.filter(keep)
`

func TestSettingsAreArguments(t *testing.T) {
	a := newAuthor(t)
	for settings, want := range map[string]int64{"": 7, "{above: 4}": 5, "{above: 4.5, only: [home0]}": 2} {
		out, err := a.process(a.open(above, settings), 10)
		if err != nil || len(out) != 1 || out[0].To != "out" || out[0].Record.NumRows() != want {
			t.Errorf("%s: %v %v; want %d rows", settings, out, err, want)
		}
	}
	if log := a.log.String(); !strings.Contains(log, `msg="rows: 10" stage=it from=stdout`) {
		t.Errorf("what it prints is not in the log: %s", log)
	}
	for settings, want := range map[string]string{
		"{abowe: 3}":          "abowe is no setting of this stage; it has: above, only",
		"{above: high}":       "above is 'high'; want a number",
		"{above: true}":       "above is True; want a number",
		"{only: [1]}":         "only is [1]; want a list of texts or nothing",
		"{above: 2026-01-01}": "above is '2026-01-01T00:00:00Z'; want a number",
	} {
		if err := a.stage(above, settings).Check("readings", nil); err == nil || err.Error() != want {
			t.Errorf("%s: %v; want %s", settings, err, want)
		}
	}
	needs := "def process(b, level: int, how: __import__('typing').Literal['fast', 'slow'] = 'fast', wait: __import__('datetime').timedelta = None):\n    return b\n"
	for settings, want := range map[string]string{
		"":                        "level must be set: it has no default",
		"{level: 1.5}":            "level is 1.5; want a whole number",
		"{level: 1, how: medium}": "how is 'medium'; want one of fast, slow",
		"{level: 1, wait: 5x}":    "wait is '5x'; want a time such as 30s or 5m",
		"{level: 1, wait: 1h30m}": "",
	} {
		// A stage that is only asked does not keep its worker.
		if err := a.stage(needs, settings).Check("readings", nil); fmt.Sprint(err) != want && (err != nil || want != "") {
			t.Errorf("%s: %v; want %s", settings, err, want)
		}
	}
}

// TestWhatAStageRaises goes to the dead letters, with what its author needs to mend it.
func TestWhatAStageRaises(t *testing.T) {
	a := newAuthor(t)
	for _, c := range []struct{ name, code, want string }{
		{"an exception", "def process(b):\n    if b.num_rows:\n        return 1 / 0\n    return b\n", "ZeroDivisionError: division by zero"},
		{"its line", "def process(b):\n    if b.num_rows:\n        return 1 / 0\n    return b\n", "it/stage.py\", line 3, in process"},
		{"bad data", "import hearthline\n\ndef process(b):\n    raise hearthline.Bad('the sensor is upside down')\n", "the sensor is upside down"},
		{"nothing", "def process(b):\n    pass\n", "process returned NoneType as out; want a batch, or a dict of batches"},
		{"a list", "def process(b):\n    return {'x': [1]}\n", "process returned list as x"},
		{"no type", "import pyarrow as pa\n\ndef process(b):\n    return pa.table({'a': pa.nulls(b.num_rows)})\n", "column a of out has no type"},
		{"a row that is not there", "import hearthline\n\ndef process(b):\n    hearthline.reject([99], 'x')\n    return b\n", "row 99 was rejected; the batch has rows 0 to 3"},
		{"exit", "def process(b):\n    raise SystemExit(3)\n", "SystemExit: 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := a.open(c.code, "")
			_, err := a.process(s, 4)
			if !errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %s", err, c.want)
			}
			if c.want == "the sensor is upside down" && strings.Contains(err.Error(), "Traceback") {
				t.Error("bad data has no traceback")
			}
		})
	}
	for _, c := range []struct{ name, code, want string }{
		{"no function", "x = 1\n", "has no function process(batch, …)"},
		{"a syntax error", "def process(b)\n    return b\n", "SyntaxError"},
		{"an import", "import nosuchmodule\n", "No module named 'nosuchmodule'"},
		{"no parameter", "def process():\n    return 1\n", "must take a batch"},
		{"it ends", "import os\nos._exit(7)\n", "exit status 7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := a.stage(c.code, "").Open(t.Context()); err == nil || errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "it") {
				t.Errorf("%v; want %s", err, c.want)
			}
		})
	}
}

func TestRejectedRows(t *testing.T) {
	a := newAuthor(t)
	s := a.open(`
import hearthline
import pyarrow.compute as pc

def process(batch):
    high = pc.greater(batch["value"], 2)
    hearthline.reject(high, "too high")
    hearthline.reject([0], "the first")
    return batch.filter(pc.invert(high)).slice(1)
`, "")
	out, err := a.process(s, 5)
	var bad *flow.BadRows
	if !errors.As(err, &bad) || fmt.Sprint(bad.Rows, bad.Reasons) != "[0 3 4] [the first too high too high]" || len(out) != 1 || out[0].Record.NumRows() != 2 {
		t.Errorf("%v, %v", out, err)
	}
}

// TestWorkersThatDie are replaced, and the batch is tried again; one that always kills them goes to the dead letters.
func TestWorkersThatDie(t *testing.T) {
	a := newAuthor(t)
	a.workers.Timeout = 2 * time.Second
	once := `
import os, time
import pyarrow as pa

def process(batch):
    mark = os.path.join(os.path.dirname(__file__), "died")
    if batch.num_rows and not os.path.exists(mark):
        open(mark, "w").close()
        print("about to go")
        %s
    return batch
`
	for name, how := range map[string]string{
		"exits": "os._exit(3)", "is killed": "os.kill(os.getpid(), 9)", "hangs": "time.sleep(600)", "answers rubbish": "os.write(3, b'rubbish' * 100)",
		"closes everything":    "os.closerange(0, 100)",
		"forks one that stays": "os.fork() or time.sleep(600); os._exit(1)",
		"fills its output":     "os.write(1, os.urandom(1 << 22)); os._exit(1)",
	} {
		t.Run(name, func(t *testing.T) {
			os.Remove(filepath.Join(a.dir, "it", "died"))
			s := a.open(fmt.Sprintf(once, how), "")
			if out, err := a.process(s, 3); err != nil || len(out) != 1 || out[0].Record.NumRows() != 3 {
				t.Errorf("%v %v", out, err)
			}
			s.Close()
			if _, err := os.Stat(filepath.Join(a.dir, "it", "died")); err != nil {
				t.Error("nobody died")
			}
		})
	}
	s := a.open("import os, sys\n\ndef process(b):\n    if b.num_rows == 3:\n        print('last words', file=sys.stderr)\n        os._exit(9)\n    return b\n", "")
	if _, err := a.process(s, 3); !errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), "3 workers died of this batch, the last: exit status 9; it said: last words") {
		t.Error(err)
	}
	if out, err := a.process(s, 2); err != nil || len(out) != 1 {
		t.Error("the next batch:", err)
	}
	// One that died while it was idle is no batch's fault.
	s.host.use.Attempts = 1
	if out, err := exec.Command("pkill", "-9", "-P", fmt.Sprint(os.Getpid()), "-f", "hearthline._worker").CombinedOutput(); err != nil {
		t.Fatalf("nobody was killed: %v %s", err, out)
	}
	for begun := time.Now(); !idleAreDead(s.host); time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > 10*time.Second {
			t.Fatal("they live")
		}
	}
	if out, err := a.process(s, 2); err != nil || len(out) != 1 {
		t.Error("after idle workers were killed:", err)
	}
	if n := a.children(); n > 2 {
		t.Errorf("%d processes; at most 2 were asked for", n)
	}
}

// TestWorkersAreBounded: a stage that uses all memory, and one that never returns, lose one batch and name the setting that bounds them.
func TestWorkersAreBounded(t *testing.T) {
	a := newAuthor(t)
	const code = `
import time

def process(batch):
    if batch.num_rows == 3:
        %s
    return batch
`
	for name, c := range map[string]struct {
		how, want string
		use       flow.Workers
	}{
		"uses all memory": {"hold = []\n        while True: hold.append(b'x' * (8 << 20))", "MiB of memory, and workers.memory_bytes_max is 300 MiB", flow.Workers{MemoryBytesMax: 300 << 20, Attempts: 2}},
		"never returns":   {"time.sleep(600)", "it did not answer within 1s (workers.timeout)", flow.Workers{Timeout: time.Second, Attempts: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			s := a.stage(fmt.Sprintf(code, c.how), "")
			s.UseWorkers(c.use)
			if err := s.Open(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			begun := time.Now()
			_, err := a.process(s, 3)
			if !errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "stage it: 2 workers died of this batch") {
				t.Errorf("%v; want %s", err, c.want)
			}
			if took := time.Since(begun); took > time.Minute {
				t.Errorf("it took %v", took)
			}
			if out, err := a.process(s, 2); err != nil || len(out) != 1 {
				t.Error("the next batch:", err)
			}
		})
	}
	// Whoever uses all memory before it works is stopped as well, by what half of the machine has where nothing is said.
	if machineMemory() < 1<<30 {
		t.Error("the machine's memory is not known")
	}
	a.workers.MemoryMax = 200 << 20
	s := a.stage("hold = []\nwhile True: hold.append(b'x' * (8 << 20))\n\ndef process(b):\n    return b\n", "")
	if err := s.Open(t.Context()); err == nil || errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), "workers.memory_bytes_max is 200 MiB") {
		t.Error("one that uses all memory before it works: ", err)
	}
}

func idleAreDead(h *host) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !slices.ContainsFunc(h.idle, (*worker).waits)
}

// children counts the worker processes of this test that live.
func (a *author) children() int {
	out, _ := exec.Command("pgrep", "-P", fmt.Sprint(os.Getpid()), "-f", "hearthline._worker").Output()
	return len(strings.Fields(string(out)))
}

// TestReload saves a stage while it works: the next batches are the new code's, and none is lost.
func TestReload(t *testing.T) {
	a := newAuthor(t)
	s := a.open("def process(b):\n    return {'old': b}\n", "")
	if out, err := a.process(s, 2); err != nil || out[0].To != "old" {
		t.Fatal(out, err)
	}
	a.write("it/stage.py", "def process(b)\n    return {'new': b}\n")
	begun := time.Now()
	for { // what cannot be loaded is tried again: nothing goes to the dead letters
		if _, err := a.process(s, 2); err != nil {
			if errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), "SyntaxError") {
				t.Fatal(err)
			}
			break
		}
		if time.Since(begun) > 10*time.Second {
			t.Fatal("the broken file is not seen")
		}
	}
	a.write("it/stage.py", "def process(b):\n    return {'new': b}\n")
	for {
		out, err := a.process(s, 2)
		if err == nil && out[0].To == "new" {
			break
		}
		if time.Since(begun) > 20*time.Second {
			t.Fatal(out, err)
		}
	}
}

// TestASchemaIsKept: code that is saved while it runs may not change what its readers count on.
func TestASchemaIsKept(t *testing.T) {
	a := newAuthor(t)
	s := a.open("def process(b):\n    return b.select(['home', 'value'])\n", "")
	if _, err := a.process(s, 2); err != nil {
		t.Fatal(err)
	}
	a.write("it/stage.py", "def process(b):\n    return b.select(['home'])\n")
	for begun := time.Now(); ; {
		_, err := a.process(s, 2)
		if err != nil && !errors.Is(err, flow.ErrBad) && strings.Contains(err.Error(), "makes other columns of out") {
			break
		}
		if err != nil || time.Since(begun) > 10*time.Second {
			t.Fatal("another schema is taken: ", err)
		}
	}
}

// TestASchemaOfOneBatch: code that makes other columns of some batches has those set aside, and goes on.
func TestASchemaOfOneBatch(t *testing.T) {
	a := newAuthor(t)
	s := a.open("import pyarrow as pa\n\ndef process(b):\n    return pa.table({'n': pa.array([1] * b.num_rows, pa.int64() if b.num_rows != 3 else pa.float64())})\n", "")
	for _, rows := range []int{2, 3, 4} {
		_, err := a.process(s, rows)
		if bad := errors.Is(err, flow.ErrBad); bad != (rows == 3) || !bad && err != nil || bad && !strings.Contains(err.Error(), "n float64) instead of (n int64") {
			t.Errorf("%d rows: %v", rows, err)
		}
	}
}

// BenchmarkProcess is a filter over batches of the pipeline's own rows, on one worker process.
func BenchmarkProcess(b *testing.B) {
	w := New("")
	w.Max = 1
	dir := b.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "it"), 0o755), os.WriteFile(filepath.Join(dir, "it", file), []byte(above), 0o644)); err != nil {
		b.Fatal(err)
	}
	found, err := w.Stages(dir)
	if err != nil {
		b.Fatal(err)
	}
	s := found["it"]()
	if err := s.(flow.Opener).Open(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer s.(flow.Closer).Close()
	for _, rows := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprintf("%d rows", rows), func(b *testing.B) {
			rec := events(rows)
			defer rec.Release()
			b.ReportAllocs()
			for b.Loop() {
				out, err := s.Process(b.Context(), rec)
				if err != nil {
					b.Fatal(err)
				}
				out[0].Record.Release()
			}
			b.ReportMetric(float64(b.N)*float64(rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// TestInstancesShareWorkers: as many instances as there are partitions have as many processes as were asked for.
func TestInstancesShareWorkers(t *testing.T) {
	a := newAuthor(t)
	first := a.open("import os, time\nimport pyarrow as pa\n\ndef process(b):\n    time.sleep(0.02)\n    return pa.table({'pid': pa.array([os.getpid()] * b.num_rows, pa.int64())})\n", "")
	var all []*Stage
	for range 8 {
		s := &Stage{hosts: first.hosts}
		if err := s.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	var mu sync.Mutex
	var work sync.WaitGroup
	pids := map[int64]int{}
	for _, s := range all {
		work.Add(1)
		go func() {
			defer work.Done()
			for range 5 {
				rec := events(1)
				out, err := s.Process(context.Background(), rec)
				rec.Release()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				pids[out[0].Record.Column(0).(*array.Int64).Value(0)]++
				mu.Unlock()
				out[0].Record.Release()
			}
		}()
	}
	work.Wait()
	if len(pids) != 2 {
		t.Errorf("batches by process: %v; want two", pids)
	}
	for _, s := range append(all, first) {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	for begun := time.Now(); a.children() != 0; time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > 4*unheldMax { // some are of tests before, whom lint alone has asked
			t.Fatalf("%d processes are left", a.children())
		}
	}
}

// TestPandasAndPolars by annotation, from an environment with what the stage requires.
func TestPandasAndPolars(t *testing.T) {
	a := newAuthor(t)
	a.write("it/requirements.txt", "pandas>=2\npolars>=1\n")
	for name, code := range map[string]string{
		"pandas": "import pandas as pd\n\ndef process(df: pd.DataFrame, above: float = 1) -> pd.DataFrame:\n    df = df[df['value'] > above]\n    return df[['home', 'value']].assign(twice=df['value'] * 2)\n",
		"polars": "import polars as pl\n\ndef process(df: pl.DataFrame, above: float = 1) -> pl.DataFrame:\n    return df.filter(pl.col('value') > above).select(pl.col('home').cast(pl.String), 'value', (pl.col('value') * 2).alias('twice'))\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := a.open(code, "")
			out, err := a.process(s, 4)
			if err != nil {
				t.Fatal(err)
			}
			rec := out[0].Record
			if twice, ok := rec.Column(2).(*array.Float64); !ok || rec.NumRows() != 2 || twice.Value(1) != 6 || rec.ColumnName(0) != "home" {
				t.Errorf("%v", rec)
			}
			none, err := a.process(s, 0)
			if err != nil || !none[0].Record.Schema().Equal(rec.Schema()) {
				t.Errorf("without rows the schema is %v, with rows %v: %v", none, rec.Schema(), err)
			}
		})
	}
}

func TestRequirementsThatCannotBeInstalled(t *testing.T) {
	a := newAuthor(t)
	a.workers.Cache = t.TempDir()
	a.write("it/requirements.txt", "no-such-package-of-anybody==99.9\n")
	for range 3 { // whoever asks at once is told, and waits for no installation
		if err := a.stage("def process(b):\n    return b\n", "").Open(t.Context()); err == nil || !strings.Contains(err.Error(), "it: requirements.txt cannot be installed") || !strings.Contains(err.Error(), "no-such-package-of-anybody") {
			t.Error(err)
		}
	}
	if n := strings.Count(a.log.String(), "an environment is made"); n != 1 {
		t.Errorf("it was tried %d times at once", n)
	}
}

// TestNeverReady: a stage that never ends its imports is told of as such, with the time that it had.
func TestNeverReady(t *testing.T) {
	a := newAuthor(t)
	a.workers.StartTime = time.Second
	if err := a.stage("while True: pass\n", "").Open(t.Context()); err == nil || errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), "it: its worker did not come up: it was not ready within 1s: what it imports") {
		t.Error(err)
	}
}

// TestCancelledWhileItStarts: where the partition goes, or the process is to end, while a worker still imports, that is not the
// stage's fault: the runtime must know it for what it is, or the process ends with an error.
func TestCancelledWhileItStarts(t *testing.T) {
	a := newAuthor(t)
	a.workers.StartTime = 20 * time.Second
	if err := a.workers.findCache(); err != nil {
		t.Fatal(err)
	}
	a.write("it/stage.py", "while True: pass\n")
	all := &hosts{workers: a.workers, name: "it", folder: filepath.Join(a.dir, "it"), by: map[string]*host{}}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Second, cancel)
	if _, err := (&host{hosts: all, print: all.filesPrint()}).start(ctx, all.filesPrint(), true); !errors.Is(err, context.Canceled) || errors.Is(err, errNotUp) {
		t.Error(err)
	}
}

func TestNoPython(t *testing.T) {
	w := New(t.TempDir())
	w.Interpreter = "python-that-is-not-there"
	a := &author{t: t, workers: w, dir: t.TempDir()}
	if err := a.stage("", "").Open(t.Context()); err == nil || !strings.Contains(err.Error(), "install Python 3.10 or later") {
		t.Error(err)
	}
}

func TestCancelled(t *testing.T) {
	a := newAuthor(t)
	s := a.open("import time\n\ndef process(b):\n    time.sleep(600 * b.num_rows)\n    return b\n", "")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	rec := events(1)
	defer rec.Release()
	begun := time.Now()
	if _, err := s.Process(ctx, rec); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, flow.ErrBad) {
		t.Error(err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %v to give up", took)
	}
}

// FuzzAnswer: a worker is a process of the stage's author. Whatever it answers, the runtime stays up, and its memory grows with what
// has come.
func FuzzAnswer(f *testing.F) {
	rec := events(2)
	good, err := encode(rec)
	if err != nil {
		f.Fatal(err)
	}
	rec.Release()
	f.Add(good)
	f.Add([]byte("rubbish"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if rec, err := decode(body); err == nil {
			rec.Release()
		}
		var frame bytes.Buffer
		if err := writeFrame(&frame, frameArrow, body); err != nil {
			t.Fatal(err)
		}
		if kind, got, err := readFrame(&frame, 1<<20); err != nil || kind != frameArrow || !bytes.Equal(got, body) {
			t.Fatal(kind, got, err)
		}
		readFrame(bytes.NewReader(body), 1<<20)
	})
}
