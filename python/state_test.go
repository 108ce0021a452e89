package python

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/flow"
	"hearthline/flow/flowtest"
)

// keyed writes a stage that keeps state, and gives an open instance.
func (a *author) keyed(code string) *KeyedStage {
	a.t.Helper()
	a.write("it/stage.py", code)
	found, err := a.workers.Stages(a.dir)
	if err != nil {
		a.t.Fatal(err)
	}
	s, ok := found["it"]().(*KeyedStage)
	if !ok {
		a.t.Fatal("it keeps no state: ", a.log)
	}
	if err := s.Open(a.t.Context()); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { s.Close() })
	return s
}

// give gives rows of a home each, received a second after each other, and reads what comes of them: "home n, home n".
func (a *author) give(s *KeyedStage, from int, homes ...string) (string, error) {
	a.t.Helper()
	b := flow.NewEventBuilder()
	for i, home := range homes {
		at := flow.Micros(1_700_000_000_000_000 + (from+i)*1_000_000)
		b.Append(&flow.Event{Time: at, Received: at, Home: home, Device: "lamp", Metric: "power", Value: float64(i), HasValue: true})
	}
	rec, _ := b.Record()
	defer rec.Release()
	out, err := s.Process(a.t.Context(), rec)
	return counts(out), err
}

func counts(out []flow.Output) string {
	var said []string
	for _, o := range out {
		homes, _ := flow.StringsOf(o.Record, "home")
		n, _ := flow.Column[*array.Int64](o.Record, "n")
		for row := range int(o.Record.NumRows()) {
			said = append(said, fmt.Sprint(homes.Value(row), " ", n.Value(row)))
		}
		o.Record.Release()
	}
	return strings.Join(said, ", ")
}

// counting is a stage that counts the rows of each home. The first line of its function is to be filled in.
const counting = `
import os, time
import hearthline
import pyarrow as pa

class Count(hearthline.State, key="home"%s):
    n: int = 0

def process(readings: pa.RecordBatch, counts: hearthline.Keyed[Count]) -> pa.RecordBatch:
    seen = []
    for row in range(readings.num_rows):
        counts[row].n += 1
        seen.append(counts[row].n)
    %s
    return pa.RecordBatch.from_arrays([readings["home"], pa.array(seen, pa.int64())], ["home", "n"])
`

func TestKeyedStages(t *testing.T) {
	a := newAuthor(t)
	for _, name := range []string{"quiet"} {
		code, err := os.ReadFile(filepath.Join("testdata", name+".py"))
		if err != nil {
			t.Fatal(err)
		}
		a.write(name+"/stage.py", string(code))
		found, err := a.workers.Stages(a.dir)
		if err != nil {
			t.Fatal(err)
		}
		flowtest.Run(t, found[name], filepath.Join("testdata", name+".yaml"))
	}
}

// TestStateInColumns: what is looked up, changed and put back in whole columns is what is so row by row.
func TestStateInColumns(t *testing.T) {
	a := newAuthor(t)
	code, err := os.ReadFile("testdata/means.py")
	if err != nil {
		t.Fatal(err)
	}
	s := a.keyed(string(code))
	for round, want := range []string{"h1 2, h2 1", "h2 3, h3 1", ""} {
		got, err := a.give(s, round*10, [][]string{{"h1", "h2", "h1"}, {"h2", "h2", "h3"}, {}}[round]...)
		if err != nil || got != want {
			t.Errorf("%s, %v; want %s", got, err, want)
		}
	}
}

// TestStateOutlivesWorkers: a batch whose worker dies, hangs or raises in the middle of it is as if it had not been.
func TestStateOutlivesWorkers(t *testing.T) {
	a := newAuthor(t)
	a.workers.Timeout = 2 * time.Second
	once := `mark = os.path.join(os.path.dirname(__file__), "died")
    if readings.num_rows == 3 and not os.path.exists(mark):
        open(mark, "w").close()
        `
	for name, how := range map[string]string{"is killed": "os.kill(os.getpid(), 9)", "hangs": "time.sleep(600)", "answers rubbish": "os.write(3, b'rubbish' * 100)"} {
		os.Remove(filepath.Join(a.dir, "it", "died"))
		s := a.keyed(fmt.Sprintf(counting, "", once+how))
		for i, want := range []string{"h1 1, h2 1", "h1 2, h1 3, h2 2", "h1 4, h2 3"} {
			got, err := a.give(s, i*10, [][]string{{"h1", "h2"}, {"h1", "h1", "h2"}, {"h1", "h2"}}[i]...)
			if err != nil || got != want {
				t.Errorf("%s: %s, %v; want %s", name, got, err, want)
			}
		}
		if _, err := os.Stat(filepath.Join(a.dir, "it", "died")); err != nil {
			t.Error(name, ": nobody died")
		}
		s.Close()
	}
	for name, how := range map[string]string{
		"raises": "if readings.num_rows == 3: raise ValueError('no')", "always dies": "if readings.num_rows == 3: os._exit(1)", "leaves a field empty": "if readings.num_rows == 3: counts[0].n = None",
		"makes another output": "if readings.num_rows == 3: return readings.select(['home'])",
		"keeps another type":   "if readings.num_rows == 3: counts[0].n = 'many'", "has no such field": "if readings.num_rows == 3: counts[0].m = 1",
	} {
		s := a.keyed(fmt.Sprintf(counting, "", how))
		for i, want := range []string{"h1 1, h2 1", "", "h1 2, h2 2"} {
			got, err := a.give(s, i*10, [][]string{{"h1", "h2"}, {"h1", "h1", "h3"}, {"h1", "h2"}}[i]...)
			if got != want || (i == 1) != errors.Is(err, flow.ErrBad) || i != 1 && err != nil {
				t.Errorf("%s: %s, %v; want %s", name, got, err, want)
			}
		}
		if n := s.Counters()["keys"]; n != 2 {
			t.Errorf("%s: %d keys", name, n)
		}
		s.Close()
	}
}

func TestStateIsBounded(t *testing.T) {
	a := newAuthor(t)
	s := a.keyed(fmt.Sprintf(counting, ", limit=2", "if seen and seen[0] == 3: hearthline.reject([0], 'three')"))
	got, err := a.give(s, 0, "h1", "h2", "h3", "h1")
	var bad *flow.BadRows
	if got != "h1 1, h2 1, h1 2" || !errors.As(err, &bad) || fmt.Sprint(bad.Rows) != "[2]" || !strings.Contains(bad.Reasons[0], "state is kept of 2 keys (home) in a partition; raise the limit, or set a ttl") {
		t.Errorf("%s, %v", got, err)
	}
	if got, err := a.give(s, 10, "h3", "h1", "h3"); got != "h1 3" || !errors.As(err, &bad) || fmt.Sprint(bad.Rows) != "[0 1 2]" || bad.Reasons[1] != "three" {
		t.Errorf("%s, %v", got, err)
	}
}

// TestStateThatChanges: code that is saved with another state goes on where a field is new, and has its batches wait where one is gone.
func TestStateThatChanges(t *testing.T) {
	a := newAuthor(t)
	with := func(fields string) string {
		return strings.Replace(fmt.Sprintf(counting, "", "if readings.num_rows: seen[0] += getattr(counts[0], 'more', 0)"), "    n: int = 0\n", fields, 1)
	}
	first := with("    n: int = 0\n")
	s := a.keyed(first)
	var old bytes.Buffer
	if got, err := a.give(s, 0, "h1"); got != "h1 1" || err != nil || s.Snapshot(&old) != nil {
		t.Fatal(got, err)
	}
	a.waits(s, with("    n: float = 0.0\n"), `field "n" is declared as float64, and the state was kept as int64`)
	a.waits(s, with("    m: int = 0\n"), `field "n" of the state that was kept (int64) is not declared any more`)
	a.waits(s, strings.Replace(first, `key="home"`, `key="device"`, 1), "state is kept by device, and the snapshot by home")
	a.waits(s, "def process(b):\n    return b\n", "stage it keeps no state any more")
	a.write("it/stage.py", with("    n: int = 0\n    more: int = 100\n"))
	if got, err := a.until(s, func(got string, err error) bool { return err == nil }); got != "h1 102" {
		t.Error(got, err)
	}
	if got, err := a.give(s, 20, "h1"); got != "h1 103" {
		t.Error("after the field was added: ", got, err)
	}
	// A start with a snapshot of before.
	if err := s.Restore(bytes.NewReader(old.Bytes())); err != nil {
		t.Fatal(err)
	}
	if got, err := a.give(s, 20, "h1"); got != "h1 102" {
		t.Error("restored: ", got, err)
	}
	s.Close()
	s = a.keyed(with("    m: int = 0\n"))
	if err := s.Restore(bytes.NewReader(old.Bytes())); err == nil || !strings.Contains(err.Error(), `Count: restore state: field "n" of the state that was kept (int64) is not declared any more`) {
		t.Error(err)
	}
	s.Close()
	plain := a.open("def process(b):\n    return b\n", "")
	a.write("it/stage.py", first)
	for begun := time.Now(); ; {
		_, err := a.process(plain, 2)
		if err != nil && strings.Contains(err.Error(), "stage it keeps state now (Count), and kept none when it started") && !errors.Is(err, flow.ErrBad) {
			break
		}
		if err != nil || time.Since(begun) > 20*time.Second {
			t.Fatal(err)
		}
	}
}

// waits saves code for which batches are to wait, with a text in the error.
func (a *author) waits(s *KeyedStage, code, want string) {
	a.t.Helper()
	a.write("it/stage.py", code)
	if got, err := a.until(s, func(_ string, err error) bool { return err != nil }); err == nil || errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), want) {
		a.t.Errorf("%s, %v; want %s", got, err, want)
	}
}

// until gives no rows until the code that was saved is seen, then a row.
func (a *author) until(s *KeyedStage, seen func(string, error) bool) (got string, err error) {
	a.t.Helper()
	for begun := time.Now(); time.Since(begun) < 20*time.Second; time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) < 2*lookEvery {
			continue
		}
		if got, err = a.give(s, 10, "h1"); seen(got, err) {
			return got, err
		}
	}
	return got, err
}

// TestAKilledWorkerDoesNotForget: a worker that is killed before it has said what the stage keeps is asked again.
func TestAKilledWorkerDoesNotForget(t *testing.T) {
	a := newAuthor(t)
	s := a.keyed(`
import os
mark = os.path.join(os.path.dirname(__file__), "died")
if not os.path.exists(mark):
    open(mark, "w").close()
    os.kill(os.getpid(), 9)
` + fmt.Sprintf(counting, "", ""))
	if got, err := a.give(s, 0, "h1"); got != "h1 1" || err != nil {
		t.Error(got, err)
	}
	// Code that cannot be loaded keeps what it kept.
	a.write("it/stage.py", "def process(b)\n")
	if _, keeps := s.hosts.stage().(*KeyedStage); !keeps {
		t.Error("a stage that is saved with an error in it keeps nothing any more")
	}
}

// TestTimeWaits: what advance raises puts no rows aside. It waits until the code is mended, and is then said once.
func TestTimeWaits(t *testing.T) {
	a := newAuthor(t)
	const code = `
from datetime import datetime, timedelta
import hearthline
import pyarrow as pa

class Count(hearthline.State, key="home", ttl="1h", timer="at"):
    n: int = 0
    at: datetime | None = None

SCHEMA = pa.schema([("home", pa.string()), ("n", pa.int64())])

def process(readings, counts: hearthline.Keyed[Count]):
    for row in range(readings.num_rows):
        counts[row].n += 1
        counts[row].at = readings["received"][row].as_py() + timedelta(seconds=10)
    return SCHEMA.empty_table()

def advance(watermark, counts: hearthline.Keyed[Count]):
    rows = []
    for (home,), count in counts.items():
        rows.append({"home": home, "n": count.n})
        count.n += 1
        if count.n < 4:
            count.at += timedelta(seconds=10)
    %s
    return pa.Table.from_pylist(rows, SCHEMA)
`
	s := a.keyed(fmt.Sprintf(code, "if rows and rows[0]['n'] == 2: 1 / 0"))
	if _, err := a.give(s, 0, "h1", "h2"); err != nil {
		t.Fatal(err)
	}
	at := flow.Micros(1_700_000_000_000_000)
	if out, err := s.Advance(t.Context(), at.Add(10*time.Second)); err != nil || len(out) != 0 {
		t.Fatal(counts(out), err)
	}
	for range 2 {
		_, err := s.Advance(t.Context(), at.Add(time.Minute))
		if err == nil || errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), "stage it: advance: ") || !strings.Contains(err.Error(), "ZeroDivisionError") || !strings.Contains(err.Error(), "stage.py") {
			t.Fatal(err)
		}
	}
	a.write("it/stage.py", fmt.Sprintf(code, ""))
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		out, err := s.Advance(t.Context(), at.Add(time.Minute))
		if err == nil {
			if got, want := counts(out), "h1 1, h2 1, h1 2, h2 2, h1 3, h2 3"; got != want {
				t.Errorf("%s; want %s", got, want)
			}
			break
		}
		if time.Since(begun) > 20*time.Second {
			t.Fatal(err)
		}
	}
}

func TestStatesThatCannotBe(t *testing.T) {
	a := newAuthor(t)
	const head = "import hearthline\nfrom datetime import datetime\n"
	const process = "\ndef process(b, s: hearthline.Keyed[S]):\n    return b\n"
	for want, code := range map[string]string{
		"S.n needs a default":                       "class S(hearthline.State, key='home'):\n    n: int\n" + process,
		"S.n is int, and its default is 'x'":        "class S(hearthline.State, key='home'):\n    n: int = 'x'\n" + process,
		"S.n is int, and its default is None":       "class S(hearthline.State, key='home'):\n    n: int = None\n" + process,
		"S.n is list[int]; state is of bool, int":   "class S(hearthline.State, key='home'):\n    n: list[int] = ()\n" + process,
		"S needs a key":                             "class S(hearthline.State):\n    n: int = 0\n" + process,
		"S: ttl is 'soon'; want a time such as":     "class S(hearthline.State, key='home', ttl='soon'):\n    n: int = 0\n" + process,
		"want a class of yours":                     "S = int\n" + process,
		"a stage has one state":                     "class S(hearthline.State, key='home'):\n    n: int = 0\n\ndef process(b, s: hearthline.Keyed[S], t: hearthline.Keyed[S]):\n    return b\n",
		"S has a timer, at: write advance":          "class S(hearthline.State, key='home', ttl='1h', timer='at'):\n    at: datetime | None = None\n" + process,
		"advance is called for keys whose timer":    "class S(hearthline.State, key='home', ttl='1h'):\n    n: int = 0\n" + process + "\ndef advance(watermark, s: hearthline.Keyed[S]):\n    return None\n",
		"need a parameter of one hearthline.Keyed[": "def process(b):\n    return b\n\ndef advance(watermark):\n    return None\n",
		"s comes after the batch":                   "class S(hearthline.State, key='home'):\n    n: int = 0\n\ndef process(s: hearthline.Keyed[S]):\n    return b\n",
	} {
		if err := a.stage(head+code, "").Open(t.Context()); err == nil || errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
	for want, code := range map[string]string{
		"needs a ttl":                       "class S(hearthline.State, key='home', timer='at'):\n    at: datetime | None = None\n" + process + "\ndef advance(watermark, s: hearthline.Keyed[S]):\n    return None\n",
		"which is to be an instant or null": "class S(hearthline.State, key='home', ttl='1h', timer='at'):\n    at: int = 0\n" + process + "\ndef advance(watermark, s: hearthline.Keyed[S]):\n    return None\n",
		"limit of state is -1":              "class S(hearthline.State, key='home', limit=-1):\n    n: int = 0\n" + process,
	} {
		a.write("it/stage.py", head+code)
		found, err := a.workers.Stages(a.dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := found["it"]().(flow.Opener).Open(t.Context()); err == nil || errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
	// What lint sees: a key that the stream does not have, and an advance that does not fit.
	s := a.keyed(head + "class S(hearthline.State, key='house'):\n    n: int = 0\n" + process)
	if _, err := a.give(s, 0); !errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), `no column "house", which the state's key names`) {
		t.Error(err)
	}
	s.Close()
	s = a.keyed(head + "class S(hearthline.State, key='home', ttl='1h', timer='at'):\n    at: datetime | None = None\n" + process + "\ndef advance(watermark, s: hearthline.Keyed[S]):\n    return s.keys\n")
	if _, err := a.give(s, 0); !errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), "advance makes other columns of out than process does") {
		t.Error(err)
	}
}

// BenchmarkKeyed counts rows in states, by row and in columns: 1,000 keys a batch.
func BenchmarkKeyed(b *testing.B) {
	means, err := os.ReadFile("testdata/means.py")
	if err != nil {
		b.Fatal(err)
	}
	for name, code := range map[string]string{"rows": fmt.Sprintf(counting, "", ""), "columns": string(means)} {
		b.Run(name, func(b *testing.B) {
			w := New("")
			w.Max = 1
			dir := b.TempDir()
			if err := errors.Join(os.MkdirAll(filepath.Join(dir, "it"), 0o755), os.WriteFile(filepath.Join(dir, "it", file), []byte(code), 0o644)); err != nil {
				b.Fatal(err)
			}
			found, err := w.Stages(dir)
			if err != nil {
				b.Fatal(err)
			}
			s := found["it"]().(*KeyedStage)
			if err := s.Open(b.Context()); err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			rec := manyKeys(10_000, 1000)
			defer rec.Release()
			for b.Loop() {
				out, err := s.Process(b.Context(), rec)
				if err != nil {
					b.Fatal(err)
				}
				out[0].Record.Release()
			}
			b.ReportMetric(float64(b.N)*10_000/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

func manyKeys(rows, keys int) arrow.Record {
	b := flow.NewEventBuilder()
	for i := range rows {
		b.Append(&flow.Event{Time: flow.Micros(i), Received: flow.Micros(i), Home: fmt.Sprint("home", i%keys), Device: "lamp", Metric: "power", Value: float64(i), HasValue: true})
	}
	rec, _ := b.Record()
	return rec
}
