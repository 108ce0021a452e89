package peerbench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearthline/flow"
	"hearthline/flow/cachedir"
	"hearthline/streams"
	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
)

// asStage is set in the processes that are a stage: brokers, stage, input.
const asStage = "PEERBENCH_STAGE"

func TestMain(m *testing.M) {
	if what := os.Getenv(asStage); what != "" {
		p := strings.Split(what, " ")
		if err := stageMain(p[0], p[1], p[2]); err != nil && !errors.Is(err, context.Canceled) {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// runner is one that does the work.
type runner struct {
	name     string
	input    string
	output   string
	rows     int // of input, a message
	messages int // of output, that all of the input comes to
	warm     int // of them, that do not count
	command  func(b *testing.B) *exec.Cmd
}

const (
	large, largeMessages = 2000, 3000 // rows of a batch, and batches
	small, smallMessages = 50, 20_000
	jsonEvents           = 1_000_000
	limit                = 10 * time.Minute
)

func BenchmarkPeers(b *testing.B) {
	cluster := apache.New()
	brokers := strings.Join(apachetest.Start(b, cluster), ",")
	c := streams.New()
	c.Brokers = strings.Split(brokers, ",")
	client, err := streams.Dial(b.Context(), c, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	var specs []streams.Spec
	for _, name := range []string{"large", "small", "json", "out-kafka-streams-at_least_once", "out-kafka-streams-exactly_once_v2", "out-quix-at-least-once", "out-quix-exactly-once"} {
		specs = append(specs, streams.Spec{Name: name, Partitions: 1})
	}
	if err := client.Ensure(b.Context(), specs); err != nil {
		b.Fatal(err)
	}
	batches(b, client, "large", large, largeMessages)
	batches(b, client, "small", small, smallMessages)
	events(b, client, jsonEvents)
	stage := func(use, input string) func(*testing.B) *exec.Cmd {
		return func(*testing.B) *exec.Cmd {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), asStage+"="+brokers+" "+use+" "+input)
			return cmd
		}
	}
	rates := map[string]float64{}
	for _, r := range []runner{
		{"go/batches_of_2000", "large", "out-warmgo-large", large, largeMessages, largeMessages / 4, stage("warmgo", "large")},
		{"go/batches_of_50", "small", "out-warmgo-small", small, smallMessages, smallMessages / 4, stage("warmgo", "small")},
		{"python/batches_of_2000", "large", "out-warmpy-large", large, largeMessages, largeMessages / 4, stage("warmpy", "large")},
		{"python/batches_of_50", "small", "out-warmpy-small", small, smallMessages, smallMessages / 4, stage("warmpy", "small")},
		{"kafka-streams/at_least_once", "json", "out-kafka-streams-at_least_once", 2, jsonEvents / 2, jsonEvents / 8, kafkaStreams(brokers, "at_least_once")},
		{"kafka-streams/exactly_once_v2", "json", "out-kafka-streams-exactly_once_v2", 2, jsonEvents / 2, jsonEvents / 8, kafkaStreams(brokers, "exactly_once_v2")},
		{"quix/at-least-once", "json", "out-quix-at-least-once", 2, jsonEvents / 2, jsonEvents / 8, quix(brokers, "at-least-once")},
		{"quix/exactly-once", "json", "out-quix-exactly-once", 2, jsonEvents / 2, jsonEvents / 8, quix(brokers, "exactly-once")},
	} {
		b.Run(r.name, func(b *testing.B) {
			rates[r.name] = r.measure(b, client)
			b.ReportMetric(rates[r.name], "rows/core-s")
			b.ReportMetric(0, "ns/op")
		})
	}
	for _, peer := range []string{"kafka-streams/at_least_once", "kafka-streams/exactly_once_v2", "quix/at-least-once", "quix/exactly-once"} {
		for _, ours := range []string{"go/batches_of_2000", "go/batches_of_50", "python/batches_of_2000", "python/batches_of_50"} {
			if rates[peer] > 0 && rates[ours] > 0 {
				b.Logf("%-24s %7.1f × %s", ours, rates[ours]/rates[peer], peer)
			}
		}
	}
}

// measure runs the process until it has done all, and gives rows a second of CPU.
func (r *runner) measure(b *testing.B, client *streams.Client) float64 {
	cmd := r.command(b)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // a test's own watcher; it ends with the process
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
	}()
	at := func(messages int) (int64, time.Duration) {
		for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
			select {
			case err := <-ended:
				ended <- err
				b.Fatalf("%s ended: %v\n%s", r.name, err, said.String())
			default:
			}
			ends, err := client.Ends(b.Context(), []string{r.output})
			if err == nil && ends[r.output][0] >= int64(messages) {
				return ends[r.output][0], cpuOf(b, cmd.Process.Pid)
			}
			if err != nil && !errors.Is(err, streams.ErrNoStream) {
				b.Fatal(err)
			}
			if time.Now().After(deadline) {
				b.Fatalf("%s had not done it within %v:\n%s", r.name, limit, said.String())
			}
		}
	}
	from, before := at(r.warm)
	to, after := at(r.messages)
	if to == from {
		b.Fatalf("%s did it all in one transaction: there is nothing between two looks", r.name)
	}
	return float64((to-from)*int64(r.rows)) / (after - before).Seconds()
}

// cpuOf is the CPU time of a process and all that it has started.
func cpuOf(b *testing.B, pid int) time.Duration {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		b.Fatal(err)
	}
	type one struct {
		parent int
		ticks  int64
	}
	all := map[int]one{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has gone
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest)
		id, _ := strconv.Atoi(strings.Split(file, "/")[2])
		parent, _ := strconv.Atoi(f[1])
		user, _ := strconv.ParseInt(f[11], 10, 64)
		system, _ := strconv.ParseInt(f[12], 10, 64)
		all[id] = one{parent, user + system}
	}
	ticks := int64(0)
	for id, p := range all {
		for up := id; up != 0; up = all[up].parent {
			if up == pid {
				ticks += p.ticks
				break
			}
		}
	}
	return time.Duration(ticks) * time.Second / 100 // USER_HZ, which is 100 on Linux
}

var metrics = []string{"temperature", "humidity"}

// event is the one of a number.
func event(n int) flow.Event {
	at := flow.Micros(1_767_225_600_000_000 + int64(n)*1000)
	return flow.Event{Time: at, Received: at, Home: fmt.Sprintf("home-%04d", n%997), Device: fmt.Sprintf("sensor-%d", n%13), Metric: metrics[n%2],
		Value: float64(n%4000) / 100, HasValue: true, Unit: "°C", Seq: int64(n), HasSeq: true}
}

// batches fills a stream with record batches, as a gateway would.
func batches(b *testing.B, client *streams.Client, stream string, rows, messages int) {
	p := client.NewProducer()
	build := flow.NewEventBuilder()
	for i := range rows {
		e := event(i)
		build.Append(&e)
	}
	rec, bounds := build.Record()
	defer rec.Release()
	var some []flow.Batch
	for n := range messages {
		some = append(some, flow.Batch{
			Lineage: flow.Lineage{Source: flow.Source{Producer: flow.GatewayProducer("bench", "1")}, Position: flow.Position{Offset: int64(n + 1)}},
			Bounds:  bounds, Watermark: bounds.Last.Add(time.Duration(n) * time.Millisecond), Record: rec,
		})
		if len(some) == 50 || n == messages-1 {
			if _, err := p.Publish(b.Context(), stream, 0, some...); err != nil {
				b.Fatal(err)
			}
			some = some[:0]
		}
	}
}

// events fills a topic with the same events as JSON.
func events(b *testing.B, client *streams.Client, n int) {
	p := client.NewProducer()
	for some := range slices.Chunk(make([]struct{}, n), 2000) {
		notes := make([]streams.Note, len(some))
		for i := range notes {
			e := event(i)
			notes[i] = streams.Note{Key: e.Home, Value: fmt.Appendf(nil, `{"time": %d, "received": %d, "home": %q, "device": %q, "metric": %q, "value": %g, "unit": "°C", "seq": %d}`,
				e.Time, e.Received, e.Home, e.Device, e.Metric, e.Value, e.Seq)}
		}
		if _, err := p.PublishNotes(b.Context(), "json", 0, notes...); err != nil {
			b.Fatal(err)
		}
	}
}

// kafkaStreams compiles and runs Warm.java.
func kafkaStreams(brokers, guarantee string) func(b *testing.B) *exec.Cmd {
	return func(b *testing.B) *exec.Cmd {
		for _, tool := range []string{"mvn", "javac", "java"} {
			if _, err := exec.LookPath(tool); err != nil {
				b.Skipf("NOT MEASURED: there is no %s (on Debian: apt-get install maven default-jdk-headless)", tool)
			}
		}
		dir := cache(b, "peerbench-java")
		if _, err := os.Stat(filepath.Join(dir, "Warm.class")); err != nil {
			must(b, "fetch Kafka Streams", "mvn", "-B", "-q", "--strict-checksums", "-f", "testdata/pom.xml",
				"org.apache.maven.plugins:maven-dependency-plugin:3.11.0:copy-dependencies", "-DoutputDirectory="+dir, "-DincludeScope=runtime")
		}
		must(b, "compile Warm.java", "javac", "-cp", dir+"/*", "-d", dir, "testdata/Warm.java")
		return exec.Command("java", "-cp", dir+"/*:"+dir, "Warm", brokers, guarantee)
	}
}

// quix runs warm.py in an environment of its own.
func quix(brokers, guarantee string) func(b *testing.B) *exec.Cmd {
	return func(b *testing.B) *exec.Cmd {
		python := "python3"
		if _, err := exec.LookPath(python); err != nil {
			b.Skip("NOT MEASURED: there is no python3")
		}
		dir := cache(b, "peerbench-quix-3.28.1")
		python = filepath.Join(dir, "bin", "python")
		if _, err := os.Stat(filepath.Join(dir, "installed")); err != nil {
			must(b, "make an environment", "python3", "-m", "venv", "--clear", dir)
			must(b, "install Quix Streams", python, "-m", "pip", "install", "-q", "quixstreams==3.28.1")
			if err := os.WriteFile(filepath.Join(dir, "installed"), nil, 0o644); err != nil {
				b.Fatal(err)
			}
		}
		return exec.Command(python, "testdata/warm.py", brokers, guarantee)
	}
}

func cache(b *testing.B, name string) string {
	found, err := cachedir.Find()
	if err != nil {
		b.Fatal(err)
	}
	dir := filepath.Join(found, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	return dir
}

// must runs a program that makes ready. What it needs of the network may not be there: then this is not measured, and says so.
func must(b *testing.B, what, name string, args ...string) {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		b.Skipf("NOT MEASURED: %s: %v\n%s", what, err, out[max(0, len(out)-1000):])
	}
}
