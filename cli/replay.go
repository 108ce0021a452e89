package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hearthline/blobs"
	"hearthline/cli/replay"
	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/pipeline/run"
	"hearthline/sinks/parquet"
)

// replayVerb has history go through stages again.
type replayVerb struct {
	*options
	replay.Asked
	name    string
	compare []string
	key     []string
	margin  time.Duration
	chTCP   string

	plan *pipeline.Plan
	*process
	dir      string
	job      *replay.Job
	goesOn   bool // it was begun before
	progress *replay.Progress
	ends     []func() // of what reading needs
}

func newReplay(o *options) *cobra.Command {
	v := &replayVerb{options: o}
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Have history go through stages again, into tables of its own",
		Long: `Reads history (files of the Parquet sink, or a stream from a time or an offset on) and has the stages of
pipeline.yaml work on it, as it is now: those that the stream feeds, or those that --stage names. What they
make is kept beside what runs: in Parquet files under DATA/replays/NAME/parquet, with --clickhouse
also in the database hearthline_replay_NAME. Nothing that runs is touched: of Kafka it only reads, and it sends
no alerts.

--since and --until bound the event time of the rows. They are a time (2026-11-01, 2026-11-01T12:00:00Z) or how long
ago (24h). A stream begins with what was written to it since then, or at --from STREAM@OFFSET, and goes to where it
ended when the replay began.

It may be ended at any time, by Ctrl-C or kill -9: run with the same --name it goes on, and every row counts once.
--compare says how what a replay has made differs from what the live pipeline has kept of the same stream.

Exit code 0: done. 3: done, and --compare found a difference. 1: the world failed, or it was ended; run it again. 2: the
command line or pipeline.yaml is wrong.`,
		Example: `  hearthline replay --name week --from parquet:data/parquet/readings --since 168h
  hearthline replay --name week                                # go on, or say what came of it
  hearthline replay --name tuned --from parquet:readings --stage score --compare scores
  hearthline replay --name again --from readings --since 24h --stage features --downstream
  hearthline replay list
  hearthline replay delete week
  hearthline replay dead normalize --where unit                # dead letters, once more, here`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return v.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&v.name, "name", "", "of the replay; run it again with the same to go on")
	f.StringArrayVar(&v.From, "from", nil, "what to read: parquet:PLACE/STREAM, parquet:STREAM (the place of the pipeline's own sink), STREAM or STREAM@OFFSET; several for stages with several inputs")
	f.StringVar(&v.Since, "since", "", "from this event time on")
	f.StringVar(&v.Until, "until", "", "to before this event time")
	f.StringSliceVar(&v.Stages, "stage", nil, "only these stages (default: all that the streams feed)")
	f.BoolVar(&v.Downstream, "downstream", false, "with --stage, those that follow from it too")
	f.BoolVar(&v.Close, "close", false, "close every window at the end, as if no row came any more; else those that are open stay so")
	f.BoolVar(&v.ClickHouse, "clickhouse", false, "into ClickHouse as well, the database hearthline_replay_NAME")
	f.StringVar(&v.chTCP, "clickhouse-tcp", "127.0.0.1:9000", "address of the embedded ClickHouse that up runs")
	f.StringSliceVar(&v.compare, "compare", nil, "compare these streams with what the pipeline's Parquet sink has kept of them")
	f.StringSliceVar(&v.key, "key", nil, "columns by which rows are compared (default: time, home, device, metric, window and seq, as far as there are)")
	f.DurationVar(&v.margin, "margin", 0, "leave rows out of the comparison that are nearer to its begin or end: stages begin without state, and end with windows open")
	cmd.AddCommand(newReplayList(o), newReplayDelete(o), newReplayDead(o))
	return cmd
}

func (v *replayVerb) run(cmd *cobra.Command) (err error) {
	ctx := cmd.Context()
	if err := os.Setenv("HEARTHLINE_DATA", v.data); err != nil {
		return err
	}
	if v.name == "" {
		return usagef("give the replay a --name: it goes on under it, and its tables are called by it")
	}
	if err := replay.CheckName(v.name); err != nil {
		return usageError{err}
	}
	if v.plan, err = load(ctx, cmd, v.options); err != nil {
		return err
	}
	if v.process, err = newProcess(v.options, v.plan); err != nil {
		return err
	}
	defer func() {
		for _, end := range slices.Backward(v.ends) {
			end()
		}
	}()
	v.dir = replay.Dir(v.data, v.name)
	if err := v.begin(ctx); err != nil {
		return err
	}
	if err := v.comparable(); err != nil {
		return err
	}
	part, err := v.part(ctx)
	if err != nil {
		return err
	}
	out := newScreen(cmd.OutOrStdout(), false)
	if v.job.Finished.IsZero() {
		if err := v.work(ctx, part, out); err != nil {
			return err
		}
	}
	if err := v.tellKept(ctx, part, out); err != nil {
		return err
	}
	return v.comparison(ctx, out)
}

// begin reads the replay of this name, or writes down a new one.
func (v *replayVerb) begin(ctx context.Context) error {
	sum := sha256.Sum256(v.plan.Spec.Source)
	hash := hex.EncodeToString(sum[:])
	old, err := replay.Read(v.dir)
	if err == nil {
		if len(v.From) > 0 && !v.Asked.Equal(old.Asked) {
			return usagef("the replay %s was begun with other flags (%s): leave them out to go on, give this one another --name, or delete the old one", v.name, showAsked(old.Asked))
		}
		if old.Finished.IsZero() && old.Pipeline != hash {
			return usagef("%s has changed since the replay %s was begun: rows of one and of the other would be mixed; delete it, or give this one another --name", v.pipeline, v.name)
		}
		v.job, v.Asked, v.goesOn = old, old.Asked, true
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(v.From) == 0 {
		return usagef("there is no replay %s yet: say --from where its history is", v.name)
	}
	now := time.Now()
	j := &replay.Job{Name: v.name, Begun: now, Asked: v.Asked, Pipeline: hash, Version: version, Inputs: map[string]replay.Stretch{}}
	if j.Since, err = instantOf("--since", v.Since, now); err != nil {
		return err
	}
	if j.Until, err = instantOf("--until", v.Until, now); err != nil {
		return err
	}
	if j.Until != 0 && j.Since >= j.Until {
		return usagef("--since %s is not before --until %s", v.Since, v.Until)
	}
	v.job = j
	for _, from := range v.From {
		if err := v.input(ctx, from); err != nil {
			return err
		}
	}
	if err := v.choose(); err != nil {
		return err
	}
	return j.Write(v.dir)
}

func showAsked(a replay.Asked) string {
	s := "--from " + strings.Join(a.From, " --from ")
	for _, f := range []struct{ flag, value string }{{"since", a.Since}, {"until", a.Until}, {"stage", strings.Join(a.Stages, ",")}} {
		if f.value != "" {
			s += " --" + f.flag + " " + f.value
		}
	}
	for _, f := range []struct {
		flag string
		set  bool
	}{{"downstream", a.Downstream}, {"close", a.Close}, {"clickhouse", a.ClickHouse}} {
		if f.set {
			s += " --" + f.flag
		}
	}
	return s
}

// instantOf reads a time, or how long ago it was; "" is 0.
func instantOf(flag, s string, now time.Time) (flow.Micros, error) {
	if s == "" {
		return 0, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return flow.MicrosOf(now.Add(-d)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return flow.MicrosOf(t), nil
		}
	}
	return 0, usagef("%s %q: want a time such as 2026-11-01 or 2026-11-01T12:00:00Z (UTC where it does not say), or how long ago, such as 24h", flag, s)
}

// choose says which stages are run.
func (v *replayVerb) choose() error {
	var inputs []string
	for in := range v.job.Inputs {
		inputs = append(inputs, in)
	}
	slices.Sort(inputs)
	switch {
	case len(v.Stages) == 0 && v.Downstream:
		return usagef("--downstream goes with --stage; without it, all that the streams feed is run")
	case len(v.Stages) == 0:
		v.job.Stages = v.plan.Downstream(inputs...)
	default:
		for _, s := range v.Stages {
			if !stageOf(v.plan, s) {
				return usagef("--stage %s: no such stage in %s; it has %s", s, v.pipeline, stageNames(v.plan))
			}
		}
		v.job.Stages = slices.Compact(slices.Sorted(slices.Values(v.Stages)))
		if v.Downstream {
			v.job.Stages = v.plan.Downstream(v.outputsOf(v.Stages)...)
			v.job.Stages = append(slices.Clone(v.Stages), slices.DeleteFunc(v.job.Stages, func(s string) bool { return slices.Contains(v.Stages, s) })...)
		}
	}
	if len(v.job.Stages) == 0 {
		return usagef("no stage reads %s", strings.Join(inputs, " or "))
	}
	if _, err := v.plan.Part(v.job.Stages, inputs); err != nil {
		return usageError{err}
	}
	return nil
}

func (v *replayVerb) outputsOf(stages []string) (streams []string) {
	for _, name := range stages {
		for _, s := range v.plan.Node(name).Stages {
			if s.Name == name {
				for _, out := range s.Outputs {
					streams = append(streams, out)
				}
				streams = append(streams, s.Dead)
			}
		}
	}
	return streams
}

// input finds out what there is of one --from.
func (v *replayVerb) input(ctx context.Context, from string) error {
	place, isFiles := strings.CutPrefix(from, "parquet:")
	var stream string
	var stretch replay.Stretch
	var partitions int
	if isFiles {
		store, named, place, err := v.files(place)
		if err != nil {
			return err
		}
		stream, stretch.Place = named, place
		if stretch.Ranges, err = replay.Files(ctx, store, stream, v.job.Since, v.job.Until); err != nil {
			return err
		}
		if partitions = len(stretch.Ranges); partitions == 0 {
			return usagef("--from %s: there is nothing of %s in %s%s", from, stream, place, ofThatTime(v.Asked))
		}
	} else {
		var err error
		if stream, stretch, err = v.stretch(ctx, from); err != nil {
			return err
		}
		partitions = len(stretch.First)
	}
	if v.plan.Streams[stream] == nil {
		return usagef("--from %s: no stream %q in %s; it has %s", from, stream, v.pipeline, strings.Join(sortedStreams(v.plan), ", "))
	}
	if _, twice := v.job.Inputs[stream]; twice {
		return usagef("--from gives %s twice", stream)
	}
	v.job.Inputs[stream] = stretch
	v.job.Partitions = max(v.job.Partitions, partitions)
	return nil
}

func ofThatTime(a replay.Asked) string {
	if a.Since == "" && a.Until == "" {
		return ""
	}
	return " of that time"
}

// files takes a place of the Parquet sink apart: the folder or bucket, and the stream, which is the last part.
func (v *replayVerb) files(at string) (store blobs.Store, stream, place string, err error) {
	own := ownParquet(v.plan)
	at = strings.TrimSuffix(at, "/")
	place, stream = path.Split(at)
	s3 := blobs.S3{}
	if own != nil {
		s3 = own.S3
	}
	if place == "" {
		if own == nil {
			return nil, "", "", usagef("--from parquet:%s: %s has no Parquet sink whose place that could be; write parquet:PLACE/%s", at, v.pipeline, stream)
		}
		place = own.To
	}
	place = strings.TrimSuffix(place, "/")
	if err := existing(place); err != nil {
		return nil, "", "", usageError{err}
	}
	store, err = blobs.Open(place, s3)
	if err != nil {
		return nil, "", "", usageError{err}
	}
	return store, stream, place, nil
}

// existing says whether there is such a folder: a store would make it.
func existing(place string) error {
	if blobs.IsShared(place) {
		return nil
	}
	if _, err := os.Stat(strings.TrimPrefix(place, "file://")); err != nil {
		return fmt.Errorf("read Parquet files: %w", err)
	}
	return nil
}

// ownParquet is the Parquet sink of the plan, nil where it has none.
func ownParquet(plan *pipeline.Plan) *parquet.Sink {
	for _, s := range plan.Sinks {
		if p, ok := s.New().(*parquet.Sink); ok {
			return p
		}
	}
	return nil
}

// stretch finds the offsets of a stream on Kafka.
func (v *replayVerb) stretch(ctx context.Context, from string) (string, replay.Stretch, error) {
	stream, at, hasOffset := strings.Cut(from, "@")
	s := replay.Stretch{}
	st := v.plan.Streams[stream]
	switch {
	case st == nil:
		return "", s, usagef("--from %s: no stream %q in %s; it has %s", from, stream, v.pipeline, strings.Join(sortedStreams(v.plan), ", "))
	case !st.OnKafka():
		return "", s, usagef("--from %s: it never reaches Kafka, since %s run together; read what they read, or Parquet files", from, st.Unit)
	}
	if err := v.live(ctx); err != nil {
		return "", s, err
	}
	ends, err := v.client.Ends(ctx, []string{stream})
	if err != nil {
		return "", s, err
	}
	s.Next = ends[stream]
	if v.job.Since != 0 {
		if s.First, err = v.client.OffsetsAt(ctx, stream, v.job.Since.Time()); err != nil {
			return "", s, err
		}
	}
	least, err := offsetOf(from, at, hasOffset)
	if err != nil {
		return "", s, err
	}
	for p := range s.Next {
		first, _, err := v.client.Bounds(ctx, stream, int32(p))
		if err != nil {
			return "", s, err
		}
		if len(s.First) <= p {
			s.First = append(s.First, first)
		}
		s.First[p] = min(max(s.First[p], first, least), s.Next[p])
	}
	return stream, s, nil
}

// live reaches the pipeline's Kafka, which is only read.
func (v *replayVerb) live(ctx context.Context) error {
	if v.client != nil {
		return nil
	}
	brokers, end, err := v.reach(ctx)
	if err != nil {
		return err
	}
	v.ends = append(v.ends, end)
	if len(brokers) == 0 {
		return usagef("nothing of this pipeline has run in %s yet: there is no stream to replay", v.data)
	}
	if err := v.dial(ctx, brokers); err != nil {
		return err
	}
	v.ends = append(v.ends, func() { _ = v.client.Close() })
	return nil
}

// part is the plan of the replay: the stages that were chosen, and where what they make is kept.
func (v *replayVerb) part(ctx context.Context) (*pipeline.Plan, error) {
	var inputs []string
	for in := range v.job.Inputs {
		inputs = append(inputs, in)
	}
	slices.Sort(inputs)
	part, err := v.plan.Part(v.job.Stages, inputs)
	if err != nil {
		return nil, usageError{err}
	}
	part.Spec.Partitions = v.job.Partitions
	part.Spec.Kafka.Retention = -time.Hour // what has not been kept yet when it is ended must be there when it goes on
	made := part.Made()
	part.Keep("parquet", func() flow.Sink {
		s := parquet.New()
		s.To = replay.ParquetDir(v.dir)
		return s
	}, made)
	if v.ClickHouse && v.job.Finished.IsZero() {
		sink, err := v.sideTables(ctx)
		if err != nil {
			return nil, err
		}
		part.Keep("clickhouse", sink, made)
	}
	return part, nil
}

// histories opens what is read.
func (v *replayVerb) histories(ctx context.Context, runID string) (map[string]run.History, error) {
	v.progress = &replay.Progress{}
	bound := replay.Bound{Since: v.job.Since, Until: v.job.Until, Run: runID, Close: v.Close}
	all := map[string]run.History{}
	for stream, s := range v.job.Inputs {
		if s.Place == "" {
			if err := v.live(ctx); err != nil {
				return nil, err
			}
			all[stream] = &replay.Kafka{Client: v.client, Stream: stream, First: s.First, Next: s.Next, Bound: bound, Done: v.progress}
			continue
		}
		store, _, _, err := v.files(s.Place + "/" + stream)
		if err != nil {
			return nil, err
		}
		all[stream] = &replay.Parquet{Stream: stream, Store: store, Ranges: s.Ranges, Bound: bound, Done: v.progress}
	}
	return all, nil
}

// work runs the replay to its end, and says how far it is.
func (v *replayVerb) work(ctx context.Context, part *pipeline.Plan, out *screen) error {
	runID := "replay-" + v.name
	histories, err := v.histories(ctx, runID)
	if err != nil {
		return err
	}
	e := &replay.Engine{Dir: v.dir, Plan: part, Histories: histories, Run: runID, Log: v.log, Meter: v.meter, Version: version}
	watch := watchReplay{job: v.job, plan: part, meter: v.meter, progress: v.progress, out: out, begun: time.Now()}
	err = watch.while(ctx, e.Go)
	if ctx.Err() != nil {
		out.say("ended; hearthline replay --name %s goes on", v.name)
		return exitError{nil, exitFailed}
	}
	if err != nil {
		return fmt.Errorf("replay %s: %w; hearthline replay --name %s goes on where it stands", v.name, err, v.name)
	}
	watch.summary(v.goesOn)
	v.job.Finished = time.Now()
	if err := v.job.Write(v.dir); err != nil {
		return err
	}
	return replay.Tidy(v.dir)
}

func offsetOf(from, at string, given bool) (int64, error) {
	if !given {
		return 0, nil
	}
	var n int64
	if _, err := fmt.Sscanf(at, "%d", &n); err != nil || n < 0 || fmt.Sprint(n) != at {
		return 0, usagef("--from %s: %q is no offset", from, at)
	}
	return n, nil
}
