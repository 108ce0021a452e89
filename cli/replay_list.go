package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
	"github.com/spf13/cobra"

	"hearthline/cli/replay"
	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/sinks/clickhouse"
	"hearthline/sinks/clickhouse/embedded"
)

func newReplayList(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show the replays that were begun",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			jobs, err := replay.List(o.data)
			out := cmd.OutOrStdout()
			if len(jobs) > 0 {
				fmt.Fprintf(out, "%-20s %-17s %-12s %10s  %s\n", "name", "begun", "state", "disk", "what")
			}
			for _, j := range jobs {
				state := "unfinished"
				if !j.Finished.IsZero() {
					state = "finished"
				}
				dir := replay.Dir(o.data, j.Name)
				if free, err := unused(dir); err == nil && !free {
					state = "running"
				}
				fmt.Fprintf(out, "%-20s %-17s %-12s %10s  %s\n", j.Name, j.Begun.UTC().Format("2006-01-02 15:04"), state, megabytes(sizeOf(dir)), harmless(showAsked(j.Asked)))
			}
			return err
		},
	}
}

// unused says whether no process runs a replay: its broker's folder is not locked.
func unused(dir string) (bool, error) {
	file := filepath.Join(dir, "kafka", "lock")
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	l := flock.New(file)
	ok, err := l.TryLock()
	if ok {
		err = l.Unlock()
	}
	return ok, err
}

func sizeOf(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it goes while it is looked at
		}
		if info, err := d.Info(); err == nil && !d.IsDir() {
			n += info.Size()
		}
		return nil
	})
	return n
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

func newReplayDelete(o *options) *cobra.Command {
	var chTCP string
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Remove a replay: its files, and its tables in ClickHouse",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.Setenv("HEARTHLINE_DATA", o.data); err != nil {
				return err
			}
			if err := replay.CheckName(args[0]); err != nil {
				return usageError{err}
			}
			dir := replay.Dir(o.data, args[0])
			if _, err := os.Stat(dir); err != nil {
				return usagef("there is no replay %s in %s", args[0], o.data)
			}
			switch free, err := unused(dir); {
			case err != nil:
				return err
			case !free:
				return fmt.Errorf("the replay %s is running: end it first", args[0])
			}
			if j, err := replay.Read(dir); err == nil && j.Asked.ClickHouse {
				v := &replayVerb{options: o, name: args[0], chTCP: chTCP}
				if err := v.dropTables(cmd); err != nil {
					return err
				}
			}
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("delete replay %s: %w", args[0], err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is gone\n", args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&chTCP, "clickhouse-tcp", "127.0.0.1:9000", "address of the embedded ClickHouse that up runs")
	return cmd
}

// sideTables makes ClickHouse sinks that write to the replay's own database.
func (v *replayVerb) sideTables(ctx context.Context) (func() flow.Sink, error) {
	made, err := v.clickhouse()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, clickhouseWait)
	defer cancel()
	probe := made()
	if err := probe.Open(ctx); err != nil {
		return nil, fmt.Errorf("%w; start hearthline up, or leave --clickhouse out: the rows are in Parquet files in any case", err)
	}
	if err := probe.Close(); err != nil {
		return nil, err
	}
	return func() flow.Sink { return made() }, nil
}

// clickhouseWait is how long a replay waits for a ClickHouse that does not answer before it begins.
const clickhouseWait = 30 * time.Second

// clickhouse gives the pipeline's ClickHouse sink, with the database of the replay in place of its own.
func (v *replayVerb) clickhouse() (func() *clickhouse.Sink, error) {
	node := clickhouseOf(v.plan)
	if node == nil {
		return nil, usagef("--clickhouse: %s has no ClickHouse sink", v.pipeline)
	}
	return func() *clickhouse.Sink {
		s := node.New().(*clickhouse.Sink)
		s.Logger, s.Database = v.log.With("node", "clickhouse"), replay.Database(v.name)
		if s.Address == clickhouse.AddressEmbedded {
			s.Address, s.PasswordEnv, s.PasswordFile = v.chTCP, "", ""
			if admin, err := embedded.Admin(filepath.Join(v.data, "clickhouse")); err == nil {
				s.User, s.Password = admin.Name, admin.Password // the writer of up may write to its own database alone
			}
		}
		return s
	}, nil
}

func clickhouseOf(plan *pipeline.Plan) *pipeline.SinkNode {
	for _, s := range plan.Sinks {
		if _, ok := s.New().(*clickhouse.Sink); ok {
			return s
		}
	}
	return nil
}

func (v *replayVerb) dropTables(cmd *cobra.Command) (err error) {
	if v.plan, err = load(cmd.Context(), cmd, v.options); err != nil {
		return err
	}
	made, err := v.clickhouse()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), clickhouseWait)
	defer cancel()
	if err := made().Drop(ctx); err != nil {
		return fmt.Errorf("delete the tables of replay %s: %w; ClickHouse must run for that", v.name, err)
	}
	return nil
}
