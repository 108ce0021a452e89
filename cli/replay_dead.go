package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"hearthline/flow"
	"hearthline/flow/cases"
	"hearthline/pipeline"
	"hearthline/streams"
)

// deadVerb gives a batch of which a stage made dead letters to that stage once more, in this process.
type deadVerb struct {
	*options
	where  string
	offset string
	save   string
	debug  bool
	attach string // where an editor attaches to a stage in Python
	rows   int

	*process
	out  io.Writer
	unit *pipeline.Unit
	node *pipeline.StageNode
}

func newReplayDead(o *options) *cobra.Command {
	v := &deadVerb{options: o}
	cmd := &cobra.Command{
		Use:   "dead STAGE",
		Short: "Give a batch that a stage set rows of aside to that stage once more, here",
		Long: `Looks into the dead letters of a stage for the newest that fits, reads the batch that it was made of from its
stream, and runs it through the stage as it is now, in this process: a fix can be tried on what failed. It prints
what comes out, what is refused and why, and the traceback of a stage that fails. Nothing is published: whether
readers have taken rows at that place already cannot be known here, so that they could count twice. Send such rows
through the gateway again, or replay the history into tables of its own.

Where the stage runs together with others, those before it are run first. A stage that remembers begins without memory.

With --debug a stage in Python has this terminal: write breakpoint() where you want to look. (Without it, and in the
pipeline, breakpoint() does nothing.) With --debugpy it waits until an editor attaches (VS Code: "Python Debugger: Remote Attach",
localhost, port 5678), and stops at its breakpoints. A stage in Go: dlv exec bin/hearthline -- replay dead STAGE.

Exit code 0: the stage refuses none of the rows any more. 3: it refuses some. 1: Kafka does not answer, or no longer has the batch.`,
		Example: `  hearthline replay dead normalize
  hearthline replay dead normalize --where unit --save-case stages/normalize/cases/unit.yaml
  hearthline replay dead overheat --offset readings/2/118 --debug`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return v.run(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&v.where, "where", "", "only dead letters whose reason holds this")
	f.StringVar(&v.offset, "offset", "", "only those of this batch: STREAM/PARTITION/OFFSET, as the dead letters have it")
	f.StringVar(&v.save, "save-case", "", "write the rows that were refused as a case for hearthline test, which fails until the stage takes them")
	f.BoolVar(&v.debug, "debug", false, "a stage in Python has this terminal, for breakpoint()")
	f.StringVar(&v.attach, "debugpy", "", "a stage in Python waits at this address of this machine for an editor that attaches by debugpy, which is installed for it")
	f.Lookup("debugpy").NoOptDefVal = "127.0.0.1:5678"
	f.IntVarP(&v.rows, "rows", "n", 20, "rows of each output that are shown; 0 = all")
	return cmd
}

// letters are the dead letters of one batch.
type letters struct {
	from   flow.Origin
	rows   []int // of the batch as the stage had it
	reason string
	count  int
}

func (v *deadVerb) run(cmd *cobra.Command, stage string) error {
	ctx := cmd.Context()
	v.out = cmd.OutOrStdout()
	if err := onThisMachine(v.attach); err != nil {
		return err
	}
	if err := os.Setenv("HEARTHLINE_DATA", v.data); err != nil {
		return err
	}
	plan, err := load(ctx, cmd, v.options)
	if err != nil {
		return err
	}
	if !stageOf(plan, stage) {
		return usagef("no stage %q in %s; it has %s", stage, v.pipeline, stageNames(plan))
	}
	v.unit = plan.Node(stage)
	v.node = v.unit.Stages[slices.IndexFunc(v.unit.Stages, func(s *pipeline.StageNode) bool { return s.Name == stage })]
	if v.process, err = newProcess(v.options, plan); err != nil {
		return err
	}
	v.configure(nil)
	brokers, end, err := v.reach(ctx)
	if err != nil {
		return err
	}
	defer end()
	if len(brokers) == 0 {
		return usagef("nothing of this pipeline has run in %s yet: there are no dead letters", v.data)
	}
	if err := v.dial(ctx, brokers); err != nil {
		return err
	}
	defer v.client.Close()
	found, err := v.find(ctx)
	if err != nil {
		return err
	}
	return v.again(ctx, found)
}

// find looks for the newest dead letter that fits, and gives all of its batch.
func (v *deadVerb) find(ctx context.Context) (*letters, error) {
	ends, err := v.client.Ends(ctx, []string{v.node.Dead})
	if err != nil {
		return nil, err
	}
	var newest *letters
	var at flow.Micros
	for p, next := range ends[v.node.Dead] {
		first, _, err := v.client.Bounds(ctx, v.node.Dead, int32(p))
		if err != nil {
			return nil, err
		}
		err = v.scan(ctx, int32(p), first, next, func(l *letters, told flow.Micros) {
			switch {
			case newest != nil && l.from == newest.from: // its letters may be in several batches
				newest.rows, newest.count = append(newest.rows, l.rows...), newest.count+l.count
			case newest == nil || told >= at:
				newest, at = l, told
			}
		})
		if err != nil {
			return nil, err
		}
	}
	if newest == nil {
		return nil, fmt.Errorf("%s holds no dead letter that fits", v.node.Dead)
	}
	return newest, nil
}

// scan gives the letters of each batch on a partition of the dead letters that fit.
func (v *deadVerb) scan(ctx context.Context, partition int32, first, next int64, give func(*letters, flow.Micros)) error {
	if first >= next {
		return nil
	}
	r := v.client.NewReader(v.node.Dead, partition, first)
	defer r.Close()
	for {
		m, err := r.Next(ctx)
		var broken *streams.DecodeError
		if errors.As(err, &broken) {
			if broken.Offset+1 >= next {
				return nil
			}
			continue
		}
		if err != nil {
			return err
		}
		if m.Batch.Record != nil && m.Batch.Kind == flow.KindRows {
			err = v.read(m.Batch.Record, m.Batch.Watermark, give)
			m.Batch.Record.Release()
		}
		if err != nil || m.Offset+1 >= next {
			return err
		}
	}
}

func (v *deadVerb) read(rec arrow.Record, told flow.Micros, give func(*letters, flow.Micros)) error {
	streamOf, err1 := flow.StringsOf(rec, "stream")
	reason, err2 := flow.StringsOf(rec, "reason")
	partition, err3 := flow.Column[*array.Int32](rec, "partition")
	offset, err4 := flow.Column[*array.Int64](rec, "offset")
	row, err5 := flow.Column[*array.Int32](rec, "row")
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return fmt.Errorf("%s: %w", v.node.Dead, err)
	}
	var one *letters
	for i := range int(rec.NumRows()) {
		from := flow.Origin{Stream: strings.Clone(streamOf.Value(i)), Partition: partition.Value(i), Offset: offset.Value(i)}
		place := fmt.Sprintf("%s/%d/%d", from.Stream, from.Partition, from.Offset)
		if !strings.Contains(reason.Value(i), v.where) || v.offset != "" && v.offset != place {
			continue
		}
		if one == nil || one.from != from {
			if one != nil {
				give(one, told)
			}
			one = &letters{from: from, reason: strings.Clone(reason.Value(i))}
		}
		one.rows = append(one.rows, int(row.Value(i)))
		one.count++
	}
	if one != nil {
		give(one, told)
	}
	return nil
}

// again reads the batch of some letters and gives it to the stage.
func (v *deadVerb) again(ctx context.Context, l *letters) (err error) {
	fmt.Fprintf(v.out, "%d rows of %s/%d/%d were refused: %s\n", l.count, l.from.Stream, l.from.Partition, l.from.Offset, harmlessLines(l.reason))
	batch, err := v.batch(ctx, l.from)
	if err != nil {
		return err
	}
	defer batch.Release()
	given, err := v.before(ctx, l.from.Stream, batch)
	if err != nil {
		return err
	}
	defer func() {
		for _, g := range given {
			g.rec.Release()
		}
	}()
	if len(given) == 0 {
		fmt.Fprintf(v.out, "the stages before %s let none of its rows through any more\n", v.node.Name)
		return nil
	}
	if v.save != "" {
		if err := v.saveCase(l, given); err != nil {
			return err
		}
	}
	stage, err := v.stage()
	if err != nil {
		return err
	}
	if err := flow.Open(ctx, stage); err != nil {
		return fmt.Errorf("open stage %s: %w", v.node.Name, err)
	}
	defer func() { err = errors.Join(err, flow.Close(stage)) }()
	if _, remembers := stage.(flow.Stateful); remembers {
		fmt.Fprintf(v.out, "%s begins without what it remembered then\n", v.node.Name)
	}
	refused := int64(0)
	for _, g := range given {
		n, err := v.give(ctx, stage, g)
		if err != nil {
			return err
		}
		refused += n
	}
	if refused > 0 {
		return exitError{nil, exitChanges}
	}
	fmt.Fprintf(v.out, "%s refuses none of the rows any more\n", v.node.Name)
	return nil
}

// batch reads the message that letters are of.
func (v *deadVerb) batch(ctx context.Context, from flow.Origin) (arrow.Record, error) {
	place := fmt.Sprintf("%s/%d/%d", from.Stream, from.Partition, from.Offset)
	first, next, err := v.client.Bounds(ctx, from.Stream, from.Partition)
	if err != nil {
		return nil, err
	}
	if from.Offset < first || from.Offset >= next {
		return nil, fmt.Errorf("the batch %s is gone: Kafka has %d to %d of that partition (kafka.retention); the row itself is in the dead letter's body", place, first, next-1)
	}
	r := v.client.NewReader(from.Stream, from.Partition, from.Offset)
	defer r.Close()
	m, err := r.Next(ctx)
	if err != nil {
		return nil, err
	}
	if m.Offset != from.Offset || m.Batch.Record == nil {
		release := m.Batch.Record
		if release != nil {
			release.Release()
		}
		return nil, fmt.Errorf("the batch %s is gone", place)
	}
	return m.Batch.Record, nil
}

// given is a record that comes to a stage on one of its inputs.
type given struct {
	stream string
	rec    arrow.Record
}

// before has a batch (borrowed) go through the stages of the unit that stand before the stage, and gives what comes to it.
func (v *deadVerb) before(ctx context.Context, stream string, batch arrow.Record) ([]given, error) {
	batch.Retain()
	all := []given{{stream, batch}}
	var mine []given
	for _, s := range v.unit.Stages {
		var next []given
		for _, g := range all {
			if !slices.Contains(s.From, g.stream) {
				continue
			}
			if s == v.node {
				g.rec.Retain()
				mine = append(mine, g)
				continue
			}
			made, err := through(ctx, s, g)
			if err != nil {
				return mine, err
			}
			next = append(next, made...)
		}
		all = append(all, next...)
		if s == v.node {
			break
		}
	}
	for _, g := range all {
		g.rec.Release()
	}
	return mine, nil
}

// through gives a record to a fresh instance of a stage. What it refuses is left out.
func through(ctx context.Context, s *pipeline.StageNode, g given) (made []given, err error) {
	stage := s.New()
	if err := flow.Open(ctx, stage); err != nil {
		return nil, fmt.Errorf("open stage %s: %w", s.Name, err)
	}
	defer func() { err = errors.Join(err, flow.Close(stage)) }()
	outputs, err := flow.Give(ctx, stage, inputOf(s, g.stream), g.rec)
	if err != nil && !errors.Is(err, flow.ErrBad) {
		flow.ReleaseOutputs(outputs)
		return nil, fmt.Errorf("stage %s: %w", s.Name, err)
	}
	for _, o := range outputs {
		if to := s.Outputs[o.To]; to == "" || o.Refused != nil || o.Record.NumRows() == 0 {
			o.Record.Release()
		} else {
			made = append(made, given{to, o.Record})
		}
	}
	return made, nil
}

// inputOf is what a stage that tells its inputs apart calls a stream; "" for others.
func inputOf(s *pipeline.StageNode, stream string) string {
	for name, in := range s.Inputs {
		if in == stream {
			return name
		}
	}
	return ""
}

// onThisMachine refuses other addresses for a debugger: whoever reaches it runs what they like.
func onThisMachine(addr string) error {
	if addr == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err != nil || host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return usagef("--debugpy is %q; want an address of this machine, as 127.0.0.1:5678 (from another one: ssh -L)", addr)
	}
	return nil
}

// stage makes the instance that is looked at.
func (v *deadVerb) stage() (flow.Stage, error) {
	if !v.debug && v.attach == "" {
		return v.node.New(), nil
	}
	if v.attach != "" {
		fmt.Fprintf(v.out, "%s waits for a debugger at %s\n", v.node.Name, v.attach)
	}
	made, err := v.atTerminal(v.node.Use, v.attach)
	if err != nil {
		return nil, err
	}
	if made == nil {
		return nil, usagef("%s is no stage in Python, to be looked into by --debug or --debugpy; one in Go is looked into by: dlv exec %s -- replay dead %s", v.node.Name, os.Args[0], v.node.Name)
	}
	if v.node.Window != nil {
		return nil, usagef("%s is given whole windows, which one batch does not fill: write a case of it, and use hearthline test", v.node.Name)
	}
	stage := made()
	if u, ok := stage.(yaml.Unmarshaler); ok {
		if err := u.UnmarshalYAML(&v.node.Settings); err != nil {
			return nil, fmt.Errorf("stage %s: settings: %w", v.node.Name, err)
		}
	}
	return stage, nil
}

// give gives a record to the stage and prints what comes of it. It says how many rows are refused.
func (v *deadVerb) give(ctx context.Context, stage flow.Stage, g given) (refused int64, err error) {
	fmt.Fprintf(v.out, "%s is given %d rows of %s\n", v.node.Name, g.rec.NumRows(), g.stream)
	outputs, err := flow.Give(ctx, stage, inputOf(v.node, g.stream), g.rec)
	defer func() { flow.ReleaseOutputs(outputs) }()
	var bad *flow.BadRows
	switch {
	case errors.As(err, &bad) && bad.Rows != nil:
		refused = int64(len(bad.Rows))
		fmt.Fprintf(v.out, "\nrefused: %d rows\n", refused)
		for i, row := range bad.Rows {
			if v.rows > 0 && i >= v.rows {
				fmt.Fprintf(v.out, "  … and %d more\n", len(bad.Rows)-i)
				break
			}
			fmt.Fprintf(v.out, "  row %d: %s\n", row, harmlessLines(bad.Reasons[i]))
		}
	case errors.Is(err, flow.ErrBad):
		refused = g.rec.NumRows()
		fmt.Fprintf(v.out, "\nrefused: all of it\n  %s\n", strings.ReplaceAll(harmlessLines(err.Error()), "\n", "\n  "))
	case err != nil:
		return 0, fmt.Errorf("stage %s: %w", v.node.Name, err)
	}
	for _, o := range outputs {
		if o.Refused != nil {
			refused += o.Record.NumRows()
			fmt.Fprintf(v.out, "\nrefused: %d rows that it had kept: %v\n", o.Record.NumRows(), o.Refused)
			continue
		}
		fmt.Fprintf(v.out, "\n%s: %d rows\n", cmp.Or(o.To, "out"), o.Record.NumRows())
		shown := o.Record.NewSlice(0, min(o.Record.NumRows(), int64(cmp.Or(max(v.rows, 0), math.MaxInt))))
		t := &tableRows{out: bufio.NewWriter(v.out), fields: shown.Schema().Fields()}
		err := t.record(shown)
		shown.Release()
		if err != nil {
			return 0, err
		}
	}
	return refused, nil
}

// caseRowsMax is how many rows a case gets: it is read by people.
const caseRowsMax = 50

// saveCase writes the refused rows as a case, or the first rows of a batch that was refused whole.
func (v *deadVerb) saveCase(l *letters, all []given) error {
	rec := all[0].rec
	var parts []arrow.Record
	slices.Sort(l.rows)
	for _, row := range slices.Compact(l.rows) {
		if row >= 0 && int64(row) < rec.NumRows() && len(parts) < caseRowsMax {
			parts = append(parts, rec.NewSlice(int64(row), int64(row)+1))
		}
	}
	name := "not refused any more: " + l.from.Stream + "/" + strconv.Itoa(int(l.from.Partition)) + "/" + strconv.FormatInt(l.from.Offset, 10)
	rows, err := joinRows(rec.Schema(), parts)
	if err != nil {
		return err
	}
	defer rows.Release()
	if len(v.node.Inputs) > 0 {
		return usagef("--save-case: %s tells its inputs apart; write its case by hand", v.node.Name)
	}
	text, err := cases.Save(name, &v.node.Settings, rows)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(v.save, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) // #nosec G302 G304 -- source code, where the author says
	if errors.Is(err, os.ErrExist) {
		return usagef("%s is there already", v.save)
	} else if err != nil {
		return fmt.Errorf("write case: %w", err)
	}
	if _, err := f.Write(text); err != nil {
		return errors.Join(fmt.Errorf("write case: %w", err), f.Close())
	}
	fmt.Fprintf(v.out, "%s: %d rows; hearthline test %s runs it\n", v.save, rows.NumRows(), v.node.Use)
	return f.Close()
}

// joinRows makes one record of parts (given away).
func joinRows(schema *arrow.Schema, parts []arrow.Record) (arrow.Record, error) {
	defer func() {
		for _, p := range parts {
			p.Release()
		}
	}()
	if len(parts) == 0 {
		return nil, errors.New("the batch no longer has the rows that were refused")
	}
	columns := make([]arrow.Array, schema.NumFields())
	for i := range columns {
		var pieces []arrow.Array
		for _, p := range parts {
			pieces = append(pieces, p.Column(i))
		}
		c, err := array.Concatenate(pieces, memory.DefaultAllocator)
		if err != nil {
			return nil, err
		}
		defer c.Release()
		columns[i] = c
	}
	return array.NewRecord(schema, columns, int64(len(parts))), nil
}
