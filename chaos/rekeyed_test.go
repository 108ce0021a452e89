package chaos

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/deploy"
	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
)

// The product's own pipeline parts rows by home alone, and all of it is Go. A run adds what has neither of that: readings go by
// metric into a stream of their own, and a stage that remembers, in SQL or in Python, makes something of all homes' rows.
const (
	byMetric   = "regrouped"
	regroup    = "regroup"    // parts the rows anew; what it does with them is what dedupe does, to which all are new
	everywhere = "everywhere" // reads them, and writes a stream of that name
)

// In SQL: windows over all homes. Homes tell their half an hour each at its own pace, so many rows are late.
const everywhereSQL = `SELECT window_start AS time, max(received) AS received, metric, count(*) AS count, min(value) AS low, max(value) AS high
  FROM input GROUP BY window_start, metric`

// In Python: each row of a metric gets the next number, whichever home's it is. Which row gets which is chance; the rows made say
// nothing of that, and so they are the same in every run.
const everywherePython = `import hearthline
import pyarrow as pa


class Tally(hearthline.State, key=("metric",)):
    n: int = 0


def process(readings: pa.RecordBatch, tallies: hearthline.Keyed[Tally]) -> pa.RecordBatch:
    numbers = []
    for row in range(readings.num_rows):
        tallies[row].n += 1
        numbers.append(tallies[row].n)
    n = pa.array(numbers, pa.int64())
    time = pa.array([1_700_000_000_000_000 + 1_000_000 * i for i in numbers], pa.int64()).cast(readings.schema.field("time").type)
    return pa.record_batch([time, readings["metric"], n], names=["time", "metric", "n"])
`

// rekeyed adds to the stages and sinks of a pipeline.yaml.
func (w *world) rekeyed(put func(value any, path ...string), kept []string) error {
	put(map[string]any{"use": "dedupe", "from": "readings", "to": map[string]any{"stream": byMetric, "key": []string{"metric"}}}, "stages", regroup)
	stage := map[string]any{"from": byMetric}
	if w.inSQL {
		stage["sql"], stage["to"] = everywhereSQL, map[string]any{"out": everywhere, "late": "overdue"}
		stage["window"] = map[string]any{"size": "10s", "by": []string{"metric"}, "lateness": "20s"}
		kept = append(kept, byMetric, everywhere, "overdue")
	} else {
		stage["to"] = everywhere
		kept = append(kept, byMetric, everywhere)
		dir := filepath.Join(w.dir, "stages", everywhere)
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "stage.py"), []byte(everywherePython), 0o600)); err != nil {
			return err
		}
	}
	put(stage, "stages", everywhere)
	put(kept, "sinks", "parquet", "from")
	put(append([]string{"commands"}, kept...), "sinks", "clickhouse", "from")
	return nil
}

func needPython(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		if os.Getenv("CI") == "" {
			t.Skip("NOT TESTED: there is no python3")
		}
		t.Fatal("there is no python3; .ci/install-tools installs it")
	}
}

// writeLock writes what the stages in Python and SQL say of themselves, for roles that have no Python.
func (w *world) writeLock() error {
	b, err := w.lock.Bytes()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(w.dir, deploy.LockFile), b, 0o600)
}

// interpreter is the environment of a role: only who runs a stage in Python or SQL has a Python, as on a cluster.
func interpreter(role string) []string {
	if strings.TrimSuffix(role, "-2") == everywhere {
		return nil
	}
	return []string{"HEARTHLINE_PYTHON=there-is-no-python"}
}

// passTime tells in the gateways' stream that some seconds have passed, as both gateways would by starting again: rows that wait for
// what may have been received before them need not wait any more.
func (w *world) passTime(ctx context.Context, c *streams.Client) error {
	latest := make([]flow.Micros, w.plan.Spec.Partitions)
	stream := w.plan.Spec.Gateway.To
	if err := eachPartition(w.plan, func(p int32) error {
		return read(ctx, c, stream, p, func(m streams.Message) error {
			latest[p] = max(latest[p], m.Batch.Watermark)
			if m.Batch.Record != nil {
				m.Batch.Record.Release()
			}
			return nil
		})
	}); err != nil {
		return err
	}
	now := slices.Max(latest) + flow.MicrosOf(time.Unix(5, 0))
	out := c.NewProducer()
	return eachPartition(w.plan, func(p int32) error {
		var told []flow.Batch
		for _, gateway := range []string{"g1", "g2"} {
			told = append(told, flow.Batch{Kind: flow.KindHeartbeat, Watermark: now, Lineage: flow.Lineage{
				Source: flow.Source{Producer: flow.GatewayProducer(gateway, "later"), Partition: p}, Position: flow.Position{Offset: 1}}})
		}
		_, err := out.Publish(ctx, stream, p, told...)
		return err
	})
}

// farStepped says whether a gateway's clock is set by about as much as a gateway may lag and be waited for.
func farStepped(faults []fault) bool {
	return slices.ContainsFunc(faults, func(f fault) bool {
		seconds, err := strconv.Atoi(f.way)
		return f.kind == "clock" && err == nil && strings.HasPrefix(f.whom, "g") && max(seconds, -seconds) >= 40
	})
}

// asItStands plays the stream that has a key, as it stands, through the stage that reads it. Where rows come that were received
// before what a gateway with another clock has told, they are not waited for: in what order the rows of several tasks come is chance
// then, and windows take rows for late by it. What the stream itself holds is compared with the undisturbed run all the same.
func (w *world) asItStands(ctx context.Context, from *streams.Client) (map[string]rows, error) {
	return w.replay(ctx, from, byMetric, []*pipeline.Unit{w.plan.Node(everywhere)}, func(partition int32, _ flow.Micros) (ends []flow.Batch) {
		for task := range int32(w.plan.Spec.Partitions) { // each that writes the stream ends it; it tells no time
			ends = append(ends, endOf("end", task, 0))
		}
		return ends
	})
}
