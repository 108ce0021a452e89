package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sourcegraph/conc/pool"
	"github.com/spf13/cobra"

	"hearthline/pipeline"
	"hearthline/pipeline/compare"
	"hearthline/pipeline/run"
)

// compareVerb compares two versions of a stage.
type compareVerb struct {
	*options
	since     time.Duration
	lasting   time.Duration
	format    string
	tolerance float64
	keys      []string
}

// compareDraws is how often the table is drawn anew.
const compareDraws = time.Second

func newCompare(o *options) *cobra.Command {
	v := &compareVerb{options: o}
	cmd := &cobra.Command{
		Use:   "compare STAGE",
		Short: "Compare what a stage and its shadow or canary make, row by row and column by column",
		Long: `Reads what both versions of a stage publish, from now on or from a while ago, and pairs the rows that were
made of the same input and have the same keys (time, home, device, …). Of every column it shows, the
first version's and the second's: nulls, mean, standard deviation, quantiles within 1 %, different texts, how
many rows are equal, and the largest differences with their rows. It joins no consumer group and slows nobody down.

Exit code 0, also where they differ.`,
		Example: `  hearthline compare score                        # live, until Ctrl-C
  hearthline compare score --for 5m               # and then the result
  hearthline compare score --since 1h             # what they have made of the last hour
  hearthline compare score --since 1h --format json | jq '.outputs[0].columns[] | {name, equal, paired}'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return v.run(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.DurationVar(&v.since, "since", 0, "compare what was made since so long ago, up to now; 0: from now on")
	f.DurationVar(&v.lasting, "for", 0, "how long to compare; 0: until Ctrl-C, or with --since up to now")
	f.StringVarP(&v.format, "format", "f", "table", "table or json")
	f.Float64Var(&v.tolerance, "tolerance", 1e-9, "the share of the larger of two numbers by which they may differ and still be equal")
	f.StringSliceVar(&v.keys, "keys", compare.DefaultKeys, "columns that say which row is which; those that a stream has not are left out")
	return cmd
}

func (v *compareVerb) run(cmd *cobra.Command, stage string) error {
	switch {
	case v.format != "table" && v.format != "json":
		return usagef("no format %q; there are table and json", v.format)
	case v.since < 0 || v.lasting < 0 || v.tolerance < 0 || v.tolerance > 1:
		return usagef("--since and --for are times, --tolerance is 0 to 1")
	}
	if err := os.Setenv("HEARTHLINE_DATA", v.data); err != nil {
		return err
	}
	plan, err := load(cmd.Context(), cmd, v.options)
	if err != nil {
		return err
	}
	if !stageOf(plan, stage) {
		return usagef("no stage %q in %s; it has %s", stage, plan.Spec.File, stageNames(plan))
	}
	c, err := compare.New(plan, stage)
	if err != nil {
		return usageError{err}
	}
	c.Tolerance, c.Keys, c.Live = v.tolerance, v.keys, v.since == 0
	p, err := newProcess(v.options, plan)
	if err != nil {
		return err
	}
	if err := p.dial(cmd.Context(), p.brokers()); err != nil {
		return err
	}
	defer p.client.Close()
	return v.watch(cmd, p.runner(run.Drain{}, nil), c)
}

// watch compares, and shows the result in the end; meanwhile too, where somebody looks.
func (v *compareVerb) watch(cmd *cobra.Command, r *run.Runner, c *compare.Comparison) error {
	ctx, cancel := cmd.Context(), func() {}
	if v.lasting > 0 {
		ctx, cancel = context.WithTimeout(ctx, v.lasting)
	}
	defer cancel()
	var since time.Time
	if v.since > 0 {
		since = time.Now().Add(-v.since)
	}
	s := newScreen(cmd.OutOrStdout(), v.format == "json")
	reading, done := context.WithCancel(ctx)
	defer done()
	p := pool.New().WithErrors().WithContext(ctx).WithCancelOnError().WithFirstError()
	p.Go(func(ctx context.Context) error {
		defer done()
		return readVersions(ctx, r, c, since, since.IsZero() || v.lasting > 0)
	})
	for drawing := s.live; drawing; {
		select {
		case <-time.After(compareDraws):
			var b strings.Builder
			compareTable(&b, c.Report(false))
			s.draw(b.String())
		case <-reading.Done():
			drawing = false
		}
	}
	if err := p.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	s.clear()
	report := c.Report(true)
	if v.format == "json" {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		return enc.Encode(report)
	}
	var b strings.Builder
	compareTable(&b, report)
	_, err := io.WriteString(cmd.OutOrStdout(), b.String())
	return err
}

// readVersions gives a comparison what its streams say.
func readVersions(ctx context.Context, r *run.Runner, c *compare.Comparison, since time.Time, live bool) error {
	p := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
	for _, stream := range c.Streams() {
		p.Go(func(ctx context.Context) error { return r.History(ctx, stream, since, live, c.Take) })
	}
	return p.Wait()
}

// compareTable writes a report for people.
func compareTable(w io.Writer, r compare.Report) {
	second := r.Second
	if r.Kind == pipeline.TrialCanary {
		second += fmt.Sprintf(", the canary of %v %% of the homes", r.Percent)
	}
	fmt.Fprintf(w, "%s: %s (1) against %s (2), %s\n", r.Stage, r.First, second, (time.Duration(r.Seconds * float64(time.Second))).Round(time.Second))
	for _, o := range r.Outputs {
		fmt.Fprintf(w, "\n%s: %s rows paired, %s equal; only in (1) %s, only in (2) %s", o.Stream, count(o.Paired), share(o.Equal, o.Paired), count(o.Only[0]), count(o.Only[1]))
		for _, rest := range []struct {
			n    int64
			what string
		}{{o.Waiting, "wait for their partner"}, {o.GaveUp, "could not be paired: too many waited"}, {o.Edge, "had their partner before this began"}} {
			if rest.n > 0 {
				fmt.Fprintf(w, "; %s %s", count(rest.n), rest.what)
			}
		}
		fmt.Fprintln(w)
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "  column\tequal\tnulls\tmean\tstd\tp10\tp50\tp90\tp99\tdifferent")
		for _, col := range o.Columns {
			columnLines(t, col)
		}
		_ = t.Flush() // to a builder
		for _, col := range o.Columns {
			for i, d := range col.Most {
				if i == 0 {
					fmt.Fprintf(w, "  %s differs most:\n", harmless(col.Name))
				}
				fmt.Fprintf(w, "    %s → %s  at %s\n", harmless(d.First), harmless(d.Second), harmless(strings.Join(d.Row, " ")))
			}
		}
	}
	fmt.Fprintf(w, "\nset aside: %s rows by (1), %s by (2)\n", count(r.Dead[0]), count(r.Dead[1]))
	if a := r.Arrival; a != nil {
		fmt.Fprintf(w, "(2) came after (1) by %s in the mean, %s in the middle, %s at most\n", milliseconds(a.Mean), milliseconds(a.P50), milliseconds(a.Max))
	}
}

// columnLines writes both versions of a column, on one line where they are the same.
func columnLines(t io.Writer, col compare.Column) {
	for i, s := range []compare.Summary{col.First, col.Second} {
		name, equal := "", "(2)"
		if i == 0 {
			name, equal = harmless(col.Name), share(col.Equal, col.Paired)
		}
		cells := []string{"  " + name, equal, count(s.Nulls)}
		if n := s.Numbers; n != nil {
			for _, x := range []float64{n.Mean, n.Std, n.P10, n.P50, n.P90, n.P99} {
				cells = append(cells, figure(x))
			}
			cells = append(cells, "")
		} else {
			cells = append(cells, "", "", "", "", "", "")
			if s.Distinct != nil {
				cells = append(cells, count(*s.Distinct))
			}
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
		if i == 0 && col.Equal == col.Paired && col.First.Rows == col.Second.Rows {
			return
		}
	}
}

func figure(x float64) string { return strconv.FormatFloat(x, 'g', 4, 64) }

func milliseconds(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(100 * time.Microsecond).String()
}

// share writes a part of a whole: 100 % only where it is all of it.
func share(part, whole int64) string {
	if whole == 0 {
		return "–"
	}
	if part == whole {
		return "100 %"
	}
	return strconv.FormatFloat(math.Floor(10_000*float64(part)/float64(whole))/100, 'f', 2, 64) + " %"
}
