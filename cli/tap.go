package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/spf13/cobra"

	"hearthline/pipeline"
	"hearthline/pipeline/run"
	"hearthline/streams"
)

func newTap(o *options) *cobra.Command {
	var rows int
	var format, at string
	cmd := &cobra.Command{
		Use:   "tap EDGE",
		Short: "Watch rows as they pass on a stream, as a table or as JSON lines",
		Long: `Shows the rows of a stream from now on. It joins no consumer group and slows nobody down. A stream that
never reaches Kafka, because its stages run together, is watched through the console of the process
that runs them.`,
		Example: `  hearthline tap readings
  hearthline tap scores --rows 100 --format json | jq 'select(.score > 8)'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.Setenv("HEARTHLINE_DATA", o.data); err != nil {
				return err
			}
			plan, err := load(cmd.Context(), cmd, o)
			if err != nil {
				return err
			}
			if format != "table" && format != "json" {
				return usagef("no format %q; there are table and json", format)
			}
			st := plan.Streams[args[0]]
			if st == nil {
				return usagef("no stream %q in %s; it has %s", args[0], o.pipeline, strings.Join(sortedStreams(plan), ", "))
			}
			t := &tap{out: cmd.OutOrStdout(), json: format == "json", left: rows, fields: st.Schema.Fields()}
			if rows < 0 {
				return usagef("--rows is %d; want 0 (until Ctrl-C) or more", rows)
			}
			if rows == 0 {
				t.left = -1
			}
			if at == "" {
				at = plan.Spec.Console.Listen
			}
			if st.OnKafka() {
				err = t.kafka(cmd.Context(), o, plan, args[0])
			} else {
				for err == nil && cmd.Context().Err() == nil {
					err = t.console(cmd.Context(), at, plan.Spec.Console, st.Unit, args[0], rows)
				}
			}
			if cmd.Context().Err() != nil || errors.Is(err, errEnough) {
				return nil
			}
			return err
		},
	}
	cmd.Flags().IntVarP(&rows, "rows", "n", 0, "stop after so many rows; 0 = until Ctrl-C")
	cmd.Flags().StringVarP(&format, "format", "f", "table", "table or json")
	cmd.Flags().StringVar(&at, "console", "", "address of the console of the process that runs the stages (default: console.listen of the pipeline)")
	return cmd
}

var errEnough = errors.New("enough rows")

// tap prints rows. Its methods may be called by several goroutines.
type tap struct {
	mu     sync.Mutex
	out    io.Writer
	json   bool
	left   int // rows still wanted; negative: all
	fields []arrow.Field
	widths []int
	headed int // rows printed under the last heading
}

func (t *tap) kafka(ctx context.Context, o *options, plan *pipeline.Plan, stream string) error {
	p, err := newProcess(o, plan)
	if err != nil {
		return err
	}
	if p.client, err = streams.Dial(ctx, p.kafka(p.brokers()), p.log); err != nil {
		return err
	}
	defer p.client.Close()
	ctx, enough := context.WithCancelCause(ctx)
	defer enough(nil)
	err = p.runner(run.Drain{}, nil).Tail(ctx, stream, func(m streams.Message) {
		if t.record(m.Batch.Record) {
			enough(errEnough)
		}
	})
	return errors.Join(err, context.Cause(ctx))
}

// consoleRowsMax is how many rows a console gives to one who asks; who wants more asks again.
const consoleRowsMax = 100_000

// console watches an edge inside a process through that process's console.
func (t *tap) console(ctx context.Context, addr string, settings pipeline.Console, unit, stream string, rows int) error {
	if rows <= 0 || rows > consoleRowsMax {
		rows = consoleRowsMax
	}
	u := url.URL{Scheme: "http", Host: addr, Path: "/api/tap", RawQuery: url.Values{"stream": {stream}, "rows": {strconv.Itoa(rows)}}.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/x-ndjson")
	if err := askConsole(req, settings); err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("%s never reaches Kafka, since %s run together, and the console of their process does not answer: %w", stream, unit, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(res.Body, 1024))
		return fmt.Errorf("%s: %s: %s", u.Host, res.Status, strings.TrimSpace(string(why)))
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var row map[string]any
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			return fmt.Errorf("console of %s: %w", addr, err)
		}
		if t.row(row) {
			return errEnough
		}
	}
	return lines.Err()
}

// record prints a record's rows. It says whether that is enough.
func (t *tap) record(rec arrow.Record) bool {
	for i := range int(rec.NumRows()) {
		row := map[string]any{}
		for c, f := range rec.Schema().Fields() {
			if col := rec.Column(c); !col.IsNull(i) {
				row[f.Name] = cell(col, i)
			}
		}
		if t.row(row) {
			return true
		}
	}
	return false
}

func cell(col arrow.Array, i int) any {
	if ts, ok := col.(*array.Timestamp); ok {
		return time.UnixMicro(int64(ts.Value(i))).UTC().Format("2006-01-02T15:04:05.000000Z")
	}
	return col.GetOneForMarshal(i)
}

// row prints one row. It says whether that is enough.
func (t *tap) row(row map[string]any) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left == 0 {
		return true
	}
	if t.json {
		b, err := json.Marshal(row)
		if err != nil {
			b = fmt.Appendf(nil, "{%q:%q}", "error", err)
		}
		fmt.Fprintf(t.out, "%s\n", harmlessJSON(b))
	} else {
		t.line(row)
	}
	if t.left > 0 {
		t.left--
	}
	return t.left == 0
}

// Limits of the table: a screenful under each heading, and no column that pushes the others out.
const (
	tapHeadingEvery = 40
	tapCellMax      = 32
)

func (t *tap) line(row map[string]any) {
	cells := make([]string, len(t.fields))
	for i, f := range t.fields {
		if v, ok := row[f.Name]; ok {
			cells[i] = printable(v)
		}
	}
	if t.widths == nil {
		t.widths = make([]int, len(cells))
	}
	grown := false
	for i, c := range cells {
		if w := max(len([]rune(c)), len(t.fields[i].Name)); w > t.widths[i] {
			t.widths[i], grown = w, true
		}
	}
	if t.headed%tapHeadingEvery == 0 || grown && t.headed < 5 {
		names := make([]string, len(t.fields))
		for i, f := range t.fields {
			names[i] = f.Name
		}
		t.print(names)
	}
	t.headed++
	t.print(cells)
}

func (t *tap) print(cells []string) {
	var b strings.Builder
	for i, c := range cells {
		b.WriteString(c)
		b.WriteString(strings.Repeat(" ", t.widths[i]-len([]rune(c))+2))
	}
	fmt.Fprintln(t.out, strings.TrimRight(b.String(), " "))
}

// printable is a value as a cell: short, and without what would move a terminal's cursor.
func printable(v any) string {
	var s string
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		s = v
	case float64:
		s = fmt.Sprintf("%.6g", v)
	default:
		b, err := json.Marshal(v)
		if err != nil {
			return "?"
		}
		s = string(b)
	}
	r := []rune(harmless(s))
	if len(r) > tapCellMax {
		r = append(slices.Clone(r[:tapCellMax-1]), '…')
	}
	return string(r)
}
