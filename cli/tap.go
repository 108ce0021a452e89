package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/spf13/cobra"

	"hearthline/pipeline"
	"hearthline/pipeline/run"
	"hearthline/python"
	"hearthline/streams"
)

func newTap(o *options) *cobra.Command {
	var at string
	t := &tap{sample: 1}
	cmd := &cobra.Command{
		Use:   "tap EDGE",
		Short: "Watch rows as they pass on a stream, as a table, JSON lines or Arrow",
		Long: `Shows the rows of a stream from now on. It joins no consumer group and slows nobody down: a terminal that is
slower than the stream is shown what it can take, and told how many rows it was not. A stream that
never reaches Kafka, because its stages run together, is watched through the console of the process
that runs them.

--where takes conditions as after SQL's WHERE: comparisons, IN, BETWEEN, LIKE, IS NULL, AND, OR, NOT.
--sql takes a query over each batch that passes, as stages in SQL have it; it needs Python 3.11 or later.
--format arrow is an Arrow IPC stream, for pandas, polars or DuckDB behind a pipe.`,
		Example: `  hearthline tap readings --where "metric = 'temperature' AND value > 25"
  hearthline tap readings --sample 0.01 --sql "SELECT device, count(*) AS n FROM input GROUP BY device"
  hearthline tap scores --rows 100 --format json | jq 'select(.score > 8)'
  hearthline tap readings --rows 10000 --format arrow | python -c "import sys, pyarrow as pa; print(pa.ipc.open_stream(sys.stdin.buffer).read_pandas())"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.Setenv("HEARTHLINE_DATA", o.data); err != nil {
				return err
			}
			plan, err := load(cmd.Context(), cmd, o)
			if err != nil {
				return err
			}
			st := plan.Streams[args[0]]
			if st == nil {
				return usagef("no stream %q in %s; it has %s", args[0], o.pipeline, strings.Join(sortedStreams(plan), ", "))
			}
			t.out, t.errors = cmd.OutOrStdout(), cmd.ErrOrStderr()
			t.hurry = isTerminal(t.out)
			workers := python.New("")
			workers.Max = 1
			workers.Logger = o.log
			if err := t.open(cmd.Context(), st, workers); err != nil {
				return err
			}
			if at == "" {
				at = plan.Spec.Console.Listen
			}
			err = t.run(cmd.Context(), func(ctx context.Context, give func(arrow.Record)) error {
				if st.OnKafka() {
					return tapKafka(ctx, o, plan, st.Name, give)
				}
				for ctx.Err() == nil {
					if err := t.tapConsole(ctx, at, plan.Spec.Console, st, give); err != nil {
						return err
					}
				}
				return nil
			})
			if cmd.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
	f := cmd.Flags()
	f.IntVarP(&t.rows, "rows", "n", 0, "stop after so many rows; 0 = until Ctrl-C")
	f.StringVarP(&t.format, "format", "f", "table", "table, json or arrow")
	f.StringVarP(&t.where, "where", "w", "", "a condition on the rows that are shown: value > 25 AND metric = 'temperature'")
	f.StringVar(&t.sql, "sql", "", "a query over each batch, which is called input: SELECT … FROM input …")
	f.Float64Var(&t.sample, "sample", 1, "the part of the rows that is shown, drawn by chance: 0.01 is one of a hundred")
	f.StringVar(&at, "console", "", "address of the console of the process that runs the stages (default: console.listen of the pipeline)")
	return cmd
}

func tapKafka(ctx context.Context, o *options, plan *pipeline.Plan, stream string, give func(arrow.Record)) error {
	p, err := newProcess(o, plan)
	if err != nil {
		return err
	}
	if p.client, err = streams.Dial(ctx, p.kafka(p.brokers()), p.log); err != nil {
		return err
	}
	defer p.client.Close()
	return p.runner(run.Drain{}, nil).Tail(ctx, stream, func(m streams.Message) { give(m.Batch.Record) })
}

// consoleRowsMax is how many rows a console gives to one who asks; who wants more asks again.
const consoleRowsMax = 100_000

// tapConsole watches an edge inside a process through that process's console, which gives Arrow as it does to notebooks.
func (t *tap) tapConsole(ctx context.Context, addr string, settings pipeline.Console, st *pipeline.Stream, give func(arrow.Record)) (err error) {
	u := url.URL{Scheme: "http", Host: addr, Path: "/api/tap", RawQuery: url.Values{"stream": {st.Name}, "rows": {strconv.Itoa(consoleRowsMax)}}.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/vnd.apache.arrow.stream")
	if err := askConsole(req, settings); err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("%s never reaches Kafka, since %s run together, and the console of their process does not answer: %w", st.Name, st.Unit, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(res.Body, 1024))
		return fmt.Errorf("%s: %s: %s", u.Host, res.Status, strings.TrimSpace(string(why)))
	}
	defer func() {
		if p := recover(); p != nil { // of the Arrow library, if this is no console
			err = fmt.Errorf("console of %s: %v", addr, p)
		}
	}()
	begun, body := time.Now(), bufio.NewReader(res.Body)
	if _, err := body.Peek(1); errors.Is(err, io.EOF) && time.Since(begun) > time.Second {
		return nil // nothing passed for as long as a console lets one look
	}
	records, err := ipc.NewReader(body, ipc.WithAllocator(memory.DefaultAllocator))
	if err != nil {
		return fmt.Errorf("console of %s: %w", addr, err)
	}
	defer records.Release()
	for records.Next() {
		give(records.Record())
	}
	if n, err := strconv.ParseInt(res.Trailer.Get("Hearthline-Dropped"), 10, 64); err == nil {
		t.dropped.Add(n)
	}
	if err := records.Err(); err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil {
		return fmt.Errorf("console of %s: %w", addr, err)
	}
	return nil
}
