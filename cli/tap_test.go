package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/ipc"

	"hearthline/cli/clitest"
	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/python"
)

// passing are n rows of a stream; every other is a temperature.
func passing(n int) arrow.Record {
	b := flow.NewEventBuilder()
	for i := range n {
		b.Append(&flow.Event{Time: flow.Micros(1_704_067_200_000_000 + i), Received: 1_704_067_200_000_000, Home: "h1", Device: "d1", Metric: []string{"temperature", "humidity"}[i%2],
			Value: float64(i), HasValue: true})
	}
	rec, _ := b.Record()
	return rec
}

func openTap(t *testing.T, of *tap) (out, said *bytes.Buffer, err error) {
	t.Helper()
	out, said = &bytes.Buffer{}, &bytes.Buffer{}
	if of.format == "" {
		of.format = "json"
	}
	if of.sample == 0 {
		of.sample = 1
	}
	of.out, of.errors = out, said
	err = of.open(t.Context(), &pipeline.Stream{Name: "readings", Schema: flow.EventSchema}, python.New(""))
	return out, said, err
}

// passingBy is a source of some records.
func passingBy(records, rows int) func(context.Context, func(arrow.Record)) error {
	return func(_ context.Context, give func(arrow.Record)) error {
		for range records {
			rec := passing(rows)
			give(rec)
			rec.Release()
		}
		return nil
	}
}

func TestTapShowsWhatIsAskedFor(t *testing.T) {
	needPython(t)
	for name, c := range map[string]struct {
		tap         *tap
		least, most int // lines
		has         string
	}{
		"all":                             {&tap{}, 300, 300, `"metric":"humidity"`},
		"some":                            {&tap{rows: 150}, 150, 150, `"value":99`},
		"a condition":                     {&tap{where: "metric = 'temperature' AND value > 50"}, 72, 72, `"value":98`},
		"a sample":                        {&tap{sample: 0.5}, 90, 210, `"home":"h1"`},
		"a query":                         {&tap{sql: "SELECT metric, count(*) AS n FROM readings GROUP BY metric"}, 6, 6, `{"metric":"humidity","n":50}`},
		"a query of some":                 {&tap{sql: "SELECT value * 2 AS twice FROM input", where: "value >= 98", rows: 5}, 5, 5, `{"twice":198}`},
		"a table":                         {&tap{format: "table", where: "value = 7"}, 4, 4, "2024-01-01T00:00:00.000007Z"},
		"a query that now and then fails": {&tap{sql: "SELECT CAST(metric AS INTEGER) AS n FROM input"}, 0, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			out, said, err := openTap(t, c.tap)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.tap.run(t.Context(), passingBy(3, 100)); err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(out.String(), "\n"); n < c.least || n > c.most || !strings.Contains(out.String(), c.has) {
				t.Errorf("%d lines, want %d to %d, one with %q:\n%.500s", n, c.least, c.most, c.has, out)
			}
			if strings.Contains(name, "fails") != strings.Contains(said.String(), "of a batch of 100 rows") {
				t.Errorf("it said %q", said)
			}
		})
	}
}

func TestTapRefusesWhatDoesNotFit(t *testing.T) {
	needPython(t)
	for want, of := range map[string]*tap{
		`--where: character 1: there is no column "valu"; there are time, received`: {where: "valu > 3"},
		`--sql: sql, line 1, column 8: Referenced column "valu" not found`:          {sql: "SELECT valu FROM input"},
		"--sql: sql, line 1, column 15: there is no table reading":                  {sql: "SELECT * FROM reading"},
		"--sample is 2":     {sample: 2},
		"--rows is -1":      {rows: -1},
		"no format \"xml\"": {format: "xml"},
	} {
		_, _, err := openTap(t, of)
		if usage := (usageError{}); !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}

// TestTapAsArrow reads what is written, as a notebook would.
func TestTapAsArrow(t *testing.T) {
	of := tap{format: "arrow", rows: 250}
	out, _, err := openTap(t, &of)
	if err != nil {
		t.Fatal(err)
	}
	if err := of.run(t.Context(), passingBy(3, 100)); err != nil {
		t.Fatal(err)
	}
	r, err := ipc.NewReader(out)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	var rows int64
	for r.Next() {
		rows += r.Record().NumRows()
		if !r.Record().Schema().Equal(flow.EventSchema) {
			t.Error(r.Record().Schema())
		}
	}
	if rows != 250 || r.Err() != nil {
		t.Error(rows, r.Err())
	}
}

// slow is a terminal that takes its time.
type slow struct{ wait time.Duration }

func (s slow) Write(b []byte) (int, error) {
	time.Sleep(s.wait)
	return len(b), nil
}

// TestTapIsNotWaitedFor: a slow terminal costs the stream nothing, and is told what it missed; a slow pipe has its source wait, and misses nothing.
func TestTapIsNotWaitedFor(t *testing.T) {
	for _, hurry := range []bool{true, false} {
		of := tap{}
		_, said, err := openTap(t, &of)
		if err != nil {
			t.Fatal(err)
		}
		of.hurry = hurry
		of.print = &jsonRows{bufio.NewWriter(slow{20 * time.Millisecond})}
		begun := time.Now()
		var took time.Duration
		err = of.run(t.Context(), func(ctx context.Context, give func(arrow.Record)) error {
			defer func() { took = time.Since(begun) }()
			return passingBy(100, 10)(ctx, give)
		})
		if err != nil {
			t.Fatal(err)
		}
		if missed := strings.Contains(said.String(), "rows passed and are not shown"); missed != hurry {
			t.Errorf("hurry %v: it said %q", hurry, said)
		}
		if hurry && took > 2*time.Second || !hurry && took < time.Second {
			t.Errorf("hurry %v: its source took %v", hurry, took)
		}
	}
}

// TestTapOfAConsole: whatever answers in a console's place, tap ends with an error.
func TestTapOfAConsole(t *testing.T) {
	answers := map[string]func(http.ResponseWriter){
		"rubbish":  func(w http.ResponseWriter) { w.Write([]byte("<html>no console</html>")) },
		"a lie":    func(w http.ResponseWriter) { w.Write([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}) },
		"no entry": func(w http.ResponseWriter) { http.Error(w, "who are you?", http.StatusUnauthorized) },
	}
	for name, answer := range answers {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
		of := tap{}
		if _, _, err := openTap(t, &of); err != nil {
			t.Fatal(err)
		}
		err := of.tapConsole(t.Context(), strings.TrimPrefix(server.URL, "http://"), pipeline.Console{}, &pipeline.Stream{Name: "clean", Unit: "normalize+dedupe"}, func(arrow.Record) {})
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		server.Close()
	}
}

// TestTapOfWhatRuns looks at a running product: at an edge on Kafka, and at those inside a task, through the console.
func TestTapOfWhatRuns(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	needPython(t)
	i := clitest.New(t)
	up := i.Up("--no-homes")
	client, password := demoClient(t, i), demoPassword(t, i)
	done := make(chan struct{})
	posted := make(chan error, 1)
	go func() { // a hub, until the test ends
		for seq := 1; ; seq++ {
			select {
			case <-done:
				posted <- nil
				return
			case <-time.After(20 * time.Millisecond):
			}
			lines := fmt.Sprintf(`{"device":"lamp","metric":"power","value":%d,"unit":"W","seq":%d}`+"\n"+`{"device":"air","metric":"temperature","value":%d,"unit":"°C","seq":%d}`, seq%10, seq, seq%30, seq)
			req, err := http.NewRequest("POST", "https://"+i.HTTP+"/v1/telemetry", strings.NewReader(lines))
			if err != nil {
				posted <- err
				return
			}
			req.Header.Set("Content-Type", "application/x-ndjson")
			req.SetBasicAuth("demo", password)
			res, err := client.Do(req)
			if err != nil {
				posted <- err
				return
			}
			res.Body.Close()
		}
	}()
	for _, edge := range []string{"readings", "clean"} {
		rows := tapped(t, i, edge, "--rows", "20", "--where", "metric = 'temperature' AND value > 10")
		if len(rows) != 20 || slices.ContainsFunc(rows, func(row map[string]any) bool {
			value, ok := row["value"].(float64)
			return row["metric"] != "temperature" || !ok || value <= 10
		}) {
			t.Errorf("tap %s: %v", edge, rows)
		}
	}
	if rows := tapped(t, i, "unique", "--rows", "3", "--sql", "SELECT home, value * 2 AS twice FROM input"); len(rows) != 3 || rows[0]["twice"] == nil || len(rows[0]) != 2 {
		t.Errorf("tap --sql: %v", rows)
	}
	close(done)
	if err := <-posted; err != nil {
		t.Error(err)
	}
	up.Stop()
}

// tapped runs tap against a running product, and gives its lines of JSON.
func tapped(t *testing.T, i *clitest.Installation, args ...string) []map[string]any {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, i.Binary, append([]string{"tap", "--pipeline", i.Pipeline, "--data", i.Data, "--format", "json"}, args...)...)
	cmd.Dir, cmd.Env = i.Dir, append(os.Environ(), "HEARTHLINE_MQTT="+i.MQTT, "HEARTHLINE_HTTP="+i.HTTP, "HEARTHLINE_CONSOLE="+i.Console)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tap %q: %v: %s", args, err, stderr.String())
	}
	var rows []map[string]any
	for line := range strings.Lines(string(out)) {
		var row map[string]any
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		rows = append(rows, row)
	}
	return rows
}
