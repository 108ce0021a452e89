package chaos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/ingest"
	"hearthline/pipeline"
	"hearthline/pipeline/run"
	"hearthline/python"
	"hearthline/sinks/clickhouse"
	"hearthline/sinks/parquet"
	"hearthline/sinks/webhook"
	"hearthline/stages"
	"hearthline/streams"
	"hearthline/streams/embedded"
)

// planOf reads a pipeline.yaml with an environment of its own.
func (w *world) planOf(text string, env []string) (*pipeline.Plan, error) {
	look := func(name string) (string, bool) {
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, name+"="); ok {
				return v, true
			}
		}
		return "", false
	}
	spec, findings := pipeline.ReadBytes("pipeline.yaml", []byte(text), look)
	if pipeline.Failed(findings) {
		return nil, fmt.Errorf("%v", findings)
	}
	workers := python.New("")
	workers.Lock = w.lock
	catalog, err := workers.Stages(filepath.Join(w.dir, "stages"))
	if err != nil {
		return nil, err
	}
	if catalog == nil {
		catalog = map[string]func() flow.Stage{}
	}
	maps.Copy(catalog, stages.Catalog())
	plan, findings := pipeline.NewPlan(context.Background(), spec, pipeline.Catalog{
		Gateway: func() any { return ingest.New() },
		Stages:  catalog, SQL: workers.SQL,
		Sinks: map[string]func() flow.Sink{
			"clickhouse": func() flow.Sink { return clickhouse.New() },
			"parquet":    func() flow.Sink { return parquet.New() },
			"webhook":    func() flow.Sink { return webhook.New() },
		},
	})
	if plan == nil || pipeline.Failed(findings) {
		return nil, fmt.Errorf("%v", findings)
	}
	return plan, nil
}

const endOfReplay = "replay"

// undisturbed plays the gateways' stream, as it stands, through the pipeline on a broker that nothing disturbs, and gives
// what every stream that sinks keep holds then.
func (w *world) undisturbed(ctx context.Context, from *streams.Client) (map[string]rows, error) {
	units := slices.Clone(w.plan.Units)
	if w.inSQL && w.stepped {
		units = slices.DeleteFunc(units, func(u *pipeline.Unit) bool { return u.Name == everywhere }) // see asItStands
	}
	return w.replay(ctx, from, w.plan.Spec.Gateway.To, units, func(partition int32, latest flow.Micros) []flow.Batch {
		return []flow.Batch{endOf("end", partition, latest)}
	})
}

// endOf ends a stream for one that writes it.
func endOf(producer string, partition int32, at flow.Micros) flow.Batch {
	return flow.Batch{Kind: flow.KindEnd, Run: endOfReplay, Watermark: at, Lineage: flow.Lineage{
		Source: flow.Source{Producer: producer, Partition: partition}, Position: flow.Position{Offset: 1}}}
}

// replay plays one stream, as it stands, through some units on a broker that nothing disturbs. ends gives what a partition of it
// ends with, by the latest time that was told there.
func (w *world) replay(ctx context.Context, from *streams.Client, stream string, units []*pipeline.Unit, ends func(int32, flow.Micros) []flow.Batch) (map[string]rows, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	addr := make(chan string, 1)
	b := embedded.New()
	b.Addr, b.Ready = "127.0.0.1:0", func(at string) { addr <- at }
	broker := conducted(b.Run)
	defer broker.end()
	cfg := streams.New()
	cfg.RequestTimeout = time.Minute
	select {
	case at := <-addr:
		cfg.Brokers = []string{at}
	case err := <-broker.done:
		broker.done <- err
		return nil, err
	}
	to, err := streams.Dial(ctx, cfg, nil)
	if err != nil {
		return nil, err
	}
	defer to.Close()
	store, err := blobs.Dir(filepath.Join(w.dir, "undisturbed", stream))
	if err != nil {
		return nil, err
	}
	// Nothing shall disturb it, a slow machine neither.
	plan, spec := *w.plan, *w.plan.Spec
	spec.Kafka.SessionTimeout = time.Minute
	plan.Spec = &spec
	r := &run.Runner{Plan: &plan, Client: to, Store: store, Log: slog.New(slog.DiscardHandler), Meter: run.NewMeter(),
		Drain: run.Drain{Run: endOfReplay, Gateways: 1}}
	if err := r.Ensure(ctx); err != nil {
		return nil, err
	}
	if err := eachPartition(&plan, func(p int32) error { return copyRaw(ctx, stream, p, from, to, ends) }); err != nil {
		return nil, fmt.Errorf("copy %s: %w", stream, err)
	}
	var running sync.WaitGroup
	failed := make([]error, len(units))
	for i, u := range units {
		running.Go(func() { failed[i] = r.Unit(ctx, u.Name) })
	}
	running.Wait()
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	return everything(ctx, &plan, units, to)
}

func eachPartition(plan *pipeline.Plan, do func(int32) error) error {
	errs := make([]error, plan.Spec.Partitions)
	var all sync.WaitGroup
	for p := range int32(plan.Spec.Partitions) {
		all.Go(func() { errs[p] = do(p) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// copyRaw copies one partition message for message, and ends it.
func copyRaw(ctx context.Context, stream string, partition int32, from, to *streams.Client, ends func(int32, flow.Micros) []flow.Batch) error {
	out := to.NewProducer()
	var held []flow.Batch
	flush := func() error {
		if len(held) == 0 {
			return nil
		}
		_, err := out.Publish(ctx, stream, partition, held...)
		for _, b := range held {
			if b.Record != nil {
				b.Record.Release()
			}
		}
		held = held[:0]
		return err
	}
	latest := flow.Micros(0)
	err := read(ctx, from, stream, partition, func(m streams.Message) error {
		latest = max(latest, m.Batch.Watermark)
		if held = append(held, m.Batch); len(held) < 200 {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	if err := flush(); err != nil {
		return err
	}
	_, err = out.Publish(ctx, stream, partition, ends(partition, latest)...)
	return err
}

// read gives every message of a partition that is there now. Its record is given away.
func read(ctx context.Context, c *streams.Client, stream string, partition int32, give func(streams.Message) error) error {
	first, next, err := c.Bounds(ctx, stream, partition)
	if err != nil {
		return err
	}
	r := c.NewReader(stream, partition, first)
	defer r.Close()
	for at := first; at < next; {
		m, err := r.Next(ctx)
		if err != nil {
			return fmt.Errorf("read %s/%d at %d of %d: %w", stream, partition, at, next, err)
		}
		at = m.Offset + 1
		if err := give(m); err != nil {
			return err
		}
	}
	return nil
}

// everything reads all streams that units have written and sinks keep.
func everything(ctx context.Context, plan *pipeline.Plan, units []*pipeline.Unit, c *streams.Client) (map[string]rows, error) {
	all := map[string]rows{}
	var mu sync.Mutex
	for _, stream := range kept(plan) {
		if !slices.Contains(units, plan.Node(plan.Streams[stream].Writer)) {
			continue
		}
		all[stream] = rows{}
		err := eachPartition(plan, func(p int32) error {
			taken := map[flow.Source]flow.Position{}
			return read(ctx, c, stream, p, func(m streams.Message) error {
				if m.Batch.Record == nil {
					return nil
				}
				last, known := taken[m.Batch.Lineage.Source]
				if known && !m.Batch.Lineage.Position.After(last) {
					return fmt.Errorf("%s/%d holds a batch twice, at %d: the undisturbed run was disturbed", stream, p, m.Offset)
				}
				taken[m.Batch.Lineage.Source] = m.Batch.Lineage.Position
				defer m.Batch.Record.Release()
				mu.Lock()
				defer mu.Unlock()
				all[stream].add(m.Batch.Record)
				return nil
			})
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// kept are the streams that are compared: what the Parquet sink reads, but for the sinks' own dead letters, which a run
// without sinks does not have.
func kept(plan *pipeline.Plan) (names []string) {
	for _, s := range plan.Sinks {
		if s.Name != "parquet" {
			continue
		}
		for _, name := range s.Streams {
			if !strings.HasSuffix(name, ".dead") || plan.Node(strings.TrimSuffix(name, ".dead")) != nil {
				names = append(names, name)
			}
		}
	}
	return names
}

// drained waits until every group has committed all that its streams hold: upstream first, so that what a unit has
// written is final when its readers are looked at.
func (w *world) drained(ctx context.Context, c *streams.Client) error {
	type reader struct {
		group   string
		streams []string
	}
	var order []reader
	for _, u := range w.plan.Units {
		order = append(order, reader{w.plan.Spec.Name + "." + u.Name, u.Inputs})
	}
	for _, s := range w.plan.Sinks {
		order = append(order, reader{w.plan.Spec.Name + "." + s.Name, s.Streams})
	}
	for _, r := range order {
		for _, stream := range r.streams {
			last := int64(-1) // is not known
			for {
				left, err := behind(ctx, c, r.group, stream)
				if err == nil && left == 0 {
					break
				}
				if err == nil {
					last = left
				}
				if ctx.Err() != nil {
					return fmt.Errorf("group %s has not come to the end of %s: %d messages are left: %w %v", r.group, stream, last, ctx.Err(), err)
				}
				wait(ctx, 50*time.Millisecond)
			}
		}
	}
	return nil
}

// behind is how many messages of a stream a group has not committed.
func behind(ctx context.Context, c *streams.Client, group, stream string) (int64, error) {
	ends, err := c.Ends(ctx, []string{stream})
	if err != nil {
		return -1, err
	}
	committed, err := c.Committed(ctx, group, stream)
	if err != nil {
		return -1, err
	}
	left := int64(0)
	for p, end := range ends[stream] {
		left += end - committed[int32(p)].Offset
	}
	return left, nil
}
