package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"hearthline/blobs"
	"hearthline/cli/replay"
	"hearthline/pipeline"
	"hearthline/pipeline/run"
	"hearthline/sinks/parquet"
)

// watchReplay says how far a replay is.
type watchReplay struct {
	job      *replay.Job
	plan     *pipeline.Plan
	meter    *run.Meter
	progress *replay.Progress
	out      *screen
	begun    time.Time

	first     float64 // share that had been done before
	firstSeen bool
}

// Times between two looks: at a terminal, and where lines are kept.
const (
	replayLook = 500 * time.Millisecond
	replayLine = 5 * time.Second
)

// while runs work and shows progress until it ends.
func (w *watchReplay) while(ctx context.Context, work func(context.Context) error) error {
	done := make(chan error, 1)
	s := services{}
	s.wait.Go(func() { done <- work(ctx) })
	defer s.wait.Wait()
	every := replayLine
	if w.out.live {
		every = replayLook
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			w.out.erase()
			return err
		case <-tick.C:
			if line := w.line(); w.out.live {
				w.out.draw(line)
			} else {
				w.out.say("%s", line)
			}
		}
	}
}

// line is one line of progress: share, place in event time, rates, what is left.
func (w *watchReplay) line() string {
	share, at := w.progress.Share()
	if !w.firstSeen && share < 1 {
		w.first, w.firstSeen = share, true
	}
	took := time.Since(w.begun)
	var b strings.Builder
	fmt.Fprintf(&b, "%5.1f%%", 100*share)
	if at != 0 {
		fmt.Fprintf(&b, "  at %s", at.Time().Format("2006-01-02 15:04"))
	}
	rows := int64(0)
	for in := range w.job.Inputs {
		rows += w.rowsOf(in)
	}
	fmt.Fprintf(&b, "  %s rows, %s/s", count(rows), count(int64(float64(rows)/max(took.Seconds(), 0.001))))
	if gained := share - w.first; gained > 0 && share < 1 {
		fmt.Fprintf(&b, "  %v left", time.Duration(float64(took)*(1-share)/gained).Round(time.Second))
	} else if share >= 1 {
		b.WriteString("  all read; the last of it is being kept")
	}
	for _, u := range w.plan.Units {
		for _, s := range u.Stages {
			n := int64(0)
			for _, in := range s.From {
				n += w.meter.Node(s.Name).In(in).Rows.Load()
			}
			fmt.Fprintf(&b, "  %s %s", s.Name, count(n))
		}
	}
	return b.String()
}

// rowsOf is how many rows of an input its first reader has taken.
func (w *watchReplay) rowsOf(stream string) int64 {
	for _, r := range w.plan.Streams[stream].Readers {
		return w.meter.Node(r).In(stream).Rows.Load()
	}
	return 0
}

// summary says what passed on every edge since this process began, which is not all where the replay was begun before.
func (w *watchReplay) summary(goesOn bool) {
	took := time.Since(w.begun)
	w.out.say("%-14s %-24s %14s", "stage", "edge", "rows")
	for _, u := range w.plan.Units {
		for _, s := range u.Stages {
			m := w.meter.Node(s.Name)
			for _, in := range s.From {
				w.out.say("%-14s %-24s %14s", s.Name, "← "+in, count(m.In(in).Rows.Load()))
			}
			for _, out := range m.Status().Edges {
				if out.Direction == "out" && out.Stream != s.Dead {
					w.out.say("%-14s %-24s %14s", "", "→ "+out.Stream, count(out.Rows))
				}
			}
			if bad := m.Bad.Load(); bad > 0 {
				w.out.say("%-14s %-24s %14s", "", "→ "+s.Dead, count(bad))
			}
		}
	}
	if goesOn {
		w.out.say("in %v; what was done before it was taken up again is not in these figures, but in those below", took.Round(time.Millisecond))
	} else {
		w.out.say("in %v", took.Round(time.Millisecond))
	}
}

// tellKept says what a replay has made, all in all.
func (v *replayVerb) tellKept(ctx context.Context, part *pipeline.Plan, out *screen) error {
	dir := replay.ParquetDir(v.dir)
	store, err := blobs.Dir(dir)
	if err != nil {
		return err
	}
	out.say("\nkept in %s:", dir)
	for _, stream := range part.Made() {
		n, err := parquet.Count(ctx, store, stream)
		if err != nil {
			return err
		}
		if n.Rows > 0 || !strings.HasSuffix(stream, ".dead") {
			out.say("  %-24s %14s rows", stream, count(n.Rows))
		}
	}
	if v.ClickHouse {
		out.say("and in the ClickHouse database %s", replay.Database(v.name))
	}
	return nil
}

// comparable says, before anything is done, whether the streams of --compare can be compared.
func (v *replayVerb) comparable() error {
	if len(v.compare) == 0 {
		return nil
	}
	if ownParquet(v.plan) == nil {
		return usagef("--compare: %s has no Parquet sink, which would have kept what the live pipeline made", v.pipeline)
	}
	for _, stream := range v.compare {
		st := v.plan.Streams[stream]
		if st == nil {
			return usagef("--compare %s: no such stream in %s; it has %s", stream, v.pipeline, strings.Join(sortedStreams(v.plan), ", "))
		}
		if !v.keeps(stream) {
			return usagef("--compare %s: the Parquet sink of %s does not keep it", stream, v.pipeline)
		}
	}
	return nil
}

func (v *replayVerb) keeps(stream string) bool {
	for _, s := range v.plan.Sinks {
		if _, ok := s.New().(*parquet.Sink); !ok {
			continue
		}
		for _, in := range s.Streams {
			if in == stream {
				return true
			}
		}
	}
	return false
}

// comparison compares what the replay has made with what was kept.
func (v *replayVerb) comparison(ctx context.Context, out *screen) error {
	differs := false
	for _, stream := range v.compare {
		own := ownParquet(v.plan)
		if err := existing(own.To); err != nil {
			return err
		}
		live, err := blobs.Open(own.To, own.S3)
		if err != nil {
			return err
		}
		made, err := blobs.Dir(replay.ParquetDir(v.dir))
		if err != nil {
			return err
		}
		c := replay.Comparison{Stream: stream, Live: live, Replay: made, Key: v.key, From: v.job.Since, To: v.job.Until}
		if v.plan.Spec.Partitions == v.job.Partitions {
			c.Partitions = v.job.Partitions
		}
		if err := v.inner(ctx, &c, made); err != nil {
			return err
		}
		d, err := c.Compare(ctx)
		if err != nil {
			return err
		}
		showDifference(out, stream, d)
		differs = differs || d.Differs()
	}
	if differs {
		return exitError{nil, exitChanges}
	}
	return nil
}

// inner narrows a comparison by the margin, measured from the first and last row that the replay has made.
func (v *replayVerb) inner(ctx context.Context, c *replay.Comparison, made blobs.Store) error {
	if v.margin <= 0 {
		return nil
	}
	first, last, err := replay.Span(ctx, made, c.Stream)
	if err != nil {
		return err
	}
	c.From = max(c.From, first).Add(v.margin)
	if end := last + 1; c.To == 0 || end < c.To {
		c.To = end
	}
	c.To = c.To.Add(-v.margin)
	return nil
}

func showDifference(out *screen, stream string, d *replay.Difference) {
	out.say("\n%s, live and replayed, by %s:", stream, strings.Join(d.Key, ", "))
	out.say("  %-24s %14s", "rows live", count(d.Live))
	out.say("  %-24s %14s", "rows of the replay", count(d.Replay))
	out.say("  %-24s %14s", "equal to the bit", count(d.Equal))
	out.say("  %-24s %14s", "different", count(d.Other))
	out.say("  %-24s %14s", "only live", count(d.OnlyLive))
	out.say("  %-24s %14s", "only in the replay", count(d.OnlyReplay))
	for _, c := range d.Columns {
		line := fmt.Sprintf("  column %-17s %14s rows differ", c.Name, count(c.Rows))
		if c.Largest > 0 {
			line += fmt.Sprintf(", the most by %.6g (%s)", c.Largest, harmless(c.At))
		}
		out.say("%s", line)
	}
	if d.Differs() {
		out.say("  the first at %s, the last at %s", d.FirstDiffers.Format(time.RFC3339), d.LastDiffers.Format(time.RFC3339))
	}
	for _, e := range d.Examples {
		out.say("  %s", harmless(e))
	}
}
