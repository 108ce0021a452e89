package run

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/stages/features"
	"hearthline/streams"
	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
)

// The takeover benchmark kills a process (-9) that runs the stage features with much state, starts it again, under its
// name and without, and measures the time until it publishes again.

const (
	takeoverPartitions = 4
	takeoverDevices    = 10 // a home
)

func takeoverPlan() *pipeline.Plan {
	node := stage("features", "readings", func() flow.Stage { return features.New() }, map[string]string{"features": "features", "late": "late"})
	p := &pipeline.Plan{
		Spec:    &pipeline.Spec{Name: "takeover", Partitions: takeoverPartitions, Gateway: pipeline.Gateway{To: "readings"}, Checkpoint: time.Second},
		Streams: map[string]*pipeline.Stream{},
		Units:   []*pipeline.Unit{{Name: "features", Inputs: []string{"readings"}, Stages: []*pipeline.StageNode{node}}},
	}
	for _, s := range []string{"readings", "features", "late", "features.dead"} {
		p.Streams[s] = &pipeline.Stream{Name: s}
	}
	return p
}

// takeoverRunner is a runner of the plan against a broker, with its checkpoints in dir.
func takeoverRunner(ctx context.Context, address, dir, instance string) (*Runner, error) {
	c := streams.New()
	c.Brokers = []string{address}
	client, err := streams.Dial(ctx, c, nil)
	if err != nil {
		return nil, err
	}
	store, err := blobs.Dir(dir)
	if err != nil {
		return nil, err
	}
	return &Runner{Plan: takeoverPlan(), Client: client, Store: store, Instance: instance, Meter: NewMeter(),
		Log: slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug}))}, nil
}

// TestTakeoverProcess is the process that is killed; it does nothing unless the benchmark starts it.
func TestTakeoverProcess(t *testing.T) {
	address := os.Getenv("TAKEOVER_BROKER")
	if address == "" {
		return
	}
	r, err := takeoverRunner(t.Context(), address, os.Getenv("TAKEOVER_DIR"), os.Getenv("TAKEOVER_INSTANCE"))
	if err != nil {
		t.Fatal(err)
	}
	t.Fatal(r.Unit(t.Context(), "features"))
}

// readingsOf is one reading of each series of a partition, in batches, at a time in minutes.
func readingsOf(partition int32, series, minute int, give func(flow.Batch)) {
	const rows = 8192
	at := flow.Micros(1_700_000_000_000_000 + int64(minute)*60_000_000)
	for from := 0; from < series; from += rows {
		b := flow.NewEventBuilder()
		for i := from; i < min(from+rows, series); i++ {
			b.Append(&flow.Event{
				Time: at, Received: at + 1000, Home: fmt.Sprintf("home-%d-%07d", partition, i/takeoverDevices),
				Device: fmt.Sprintf("sensor-%02d", i%takeoverDevices), Metric: "temperature", Value: 20 + float64(i%97)/10, HasValue: true, Unit: "°C",
			})
		}
		rec, _ := b.Record()
		batch := flow.Batch{Watermark: at, Record: rec}
		batch.Lineage = flow.Lineage{Source: flow.Source{Producer: "gateway/0", Partition: partition},
			Position: flow.Position{Offset: int64(minute)*1_000_000 + int64(from)}}
		give(batch)
		rec.Release()
	}
}

// takeovers are who goes on with the partitions of a process that was killed.
var takeovers = []struct {
	name, instance string
	other          bool // runs beside the one that is killed, which is not started again before the other has taken over
}{
	{name: "named", instance: "pod-0"},    // the same, under its lasting name
	{name: "nameless"},                    // the same, as one that the group does not know
	{name: "another-member", other: true}, // another, which had half of the partitions before
}

// What is promised of a kill: with so large a state, all partitions publish again within this time.
const (
	takeoverPromised      = 10 * time.Second
	takeoverPromisedBytes = 1_000_000_000
)

// BenchmarkTakeover reports, for series in all (TAKEOVER_SERIES, 100,000 unless set; some 1.5 KB of memory each), the bytes
// of their checkpoints and the seconds from a kill to new output of every partition. What a partition's state took to
// be read and restored is printed. It fails where a takeover of a gigabyte takes longer than is promised (make takeover).
func BenchmarkTakeover(b *testing.B) {
	series := 100_000
	if s := os.Getenv("TAKEOVER_SERIES"); s != "" {
		series, _ = strconv.Atoi(s)
	}
	for _, kind := range []string{"embedded", "apache"} {
		for _, how := range takeovers {
			b.Run(kind+"/"+how.name, func(b *testing.B) {
				address := ""
				if kind == "apache" {
					address = apachetest.Start(b, apache.New())[0]
				} else {
					address = broker(b)
				}
				takeover(b, address, how.instance, how.other, series)
			})
		}
	}
}

func takeover(b *testing.B, address, instance string, other bool, series int) {
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
	defer cancel()
	dir := b.TempDir()
	said, err := os.Create(filepath.Join(dir, "said"))
	if err != nil {
		b.Fatal(err)
	}
	defer said.Close()
	r, err := takeoverRunner(ctx, address, filepath.Join(dir, "blobs"), "")
	if err != nil {
		b.Fatal(err)
	}
	if err := r.Ensure(ctx); err != nil {
		b.Fatal(err)
	}
	p := r.Client.NewProducer()
	minute := 0
	feed := func(minutes, series int) {
		for range minutes {
			for partition := range int32(takeoverPartitions) {
				readingsOf(partition, series/takeoverPartitions, minute, func(batch flow.Batch) {
					if _, err := p.Publish(ctx, "readings", partition, batch); err != nil {
						b.Fatal(err)
					}
				})
			}
			minute++
		}
	}
	next := func(stream string, partition int32) int64 {
		_, next, err := r.Client.Bounds(ctx, stream, partition)
		if err != nil {
			b.Fatal(err)
		}
		return next
	}
	start := func() (kill func()) {
		cmd := exec.Command(os.Args[0], "-test.run", "TestTakeoverProcess$", "-test.timeout", "20m")
		cmd.Env = append(os.Environ(), "TAKEOVER_BROKER="+address, "TAKEOVER_DIR="+filepath.Join(dir, "blobs"), "TAKEOVER_INSTANCE="+instance)
		cmd.Stdout = said
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	}
	settled := func() (bytes int64) { // every partition's state is in a checkpoint of all its input
		for ctx.Err() == nil {
			committed, err := r.Client.Committed(ctx, r.group("features"), "readings")
			if err != nil {
				b.Fatal(err)
			}
			done := 0
			for partition := range int32(takeoverPartitions) {
				if c, ok := committed[partition]; ok && c.Offset >= next("readings", partition) {
					done++
				}
			}
			if done == takeoverPartitions {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		infos, err := r.Store.List(ctx, "")
		if err != nil {
			b.Fatal(err)
		}
		newest := map[string]int64{}
		for _, i := range infos {
			newest[i.Name[:strings.LastIndex(i.Name, "/")]] = i.Size
		}
		for _, size := range newest {
			bytes += size
		}
		return bytes
	}
	kill := start()
	defer func() { kill() }()
	if other {
		defer start()()
	}
	feed(6, series)
	var bytes int64
	var worst time.Duration
	for b.Loop() {
		bytes = settled()
		var before [takeoverPartitions]int64
		for partition := range before {
			before[partition] = next("features", int32(partition))
		}
		kill()
		killed := time.Now()
		if !other {
			kill = start()
		}
		feed(1, 400) // a little is new, and closes windows
		for partition := range before {
			for next("features", int32(partition)) == before[partition] && ctx.Err() == nil {
				time.Sleep(20 * time.Millisecond)
			}
		}
		worst = max(worst, time.Since(killed))
	}
	log, err := os.ReadFile(said.Name())
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "partition taken up") && !strings.Contains(line, "state_bytes=0 ") {
			b.Log(strings.TrimSpace(line))
		}
	}
	b.ReportMetric(float64(bytes)/1e6, "MB-checkpoints")
	b.ReportMetric(worst.Seconds(), "s-worst")
	if ctx.Err() != nil {
		b.Fatal("not done within 10 minutes")
	}
	if bytes >= takeoverPromisedBytes && worst > takeoverPromised {
		b.Errorf("a takeover of %d MB took %v; promised are %v", bytes/1_000_000, worst, takeoverPromised)
	}
}
