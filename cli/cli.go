// Package cli holds the verbs of the one binary, a file a verb. It is where the rooms meet: rooms do not know
// each other, a verb joins those it needs.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"hearthline/python"
	"hearthline/sinks/clickhouse/embedded"
)

// Exit codes. They are part of the interface: scripts and Kubernetes act on them.
const (
	exitOK      = 0
	exitFailed  = 1 // something in the world failed; a supervisor may start it again
	exitUsage   = 2 // the command line or pipeline.yaml is wrong; starting it again will not help
	exitChanges = 3 // plan: something differs from what runs
	exitRefused = 4 // plan: something would lose state or rows, and nobody has said that it may
	// A second Ctrl-C has its default effect: the shell reports 130.
)

// version is set by the build.
var version = "unknown"

// usageError is the caller's mistake.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// errFindings says that pipeline.yaml is wrong; what is wrong has been printed.
var errFindings = errors.New("pipeline.yaml does not fit together")

// options are what every verb takes.
type options struct {
	pipeline string
	data     string
	verbose  bool
	jsonLog  bool
	log      *slog.Logger
	lock     *python.Lock // what stages answer to lint, where it is to be kept
	locked   bool         // stages in Python and SQL are known by the lock alone
}

// Main runs the verb that args name and gives the exit code.
func Main(args []string) int {
	if len(args) > 0 && args[0] == embedded.Verb {
		return embedded.Main(args[1:])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() {
		stop() // from here on a second signal has its default effect
	})
	o := &options{}
	root := newRoot(o)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	var usage usageError
	var own exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &own):
		if own.err != nil {
			fmt.Fprintf(os.Stderr, "hearthline: %v\n", err)
		}
		return own.code
	case errors.Is(err, errFindings):
		return exitUsage
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"):
		fmt.Fprintf(os.Stderr, "hearthline: %s\n", harmlessLines(err.Error()))
		fmt.Fprintf(os.Stderr, "try: %s --help\n", cmd.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(os.Stderr, "hearthline: %s\n", harmlessLines(err.Error()))
	return exitFailed
}

func newRoot(o *options) *cobra.Command {
	root := &cobra.Command{
		Use:   "hearthline",
		Short: "A telemetry pipeline for smart homes: device → gateway → stages → sinks",
		Long: `Hearthline carries what the devices of many homes say to the people and models that need it.
A gateway takes it in, small stages clean, enrich, window and score it, sinks keep it; Kafka is
between them. pipeline.yaml says, on one page, how they are joined.

Start with "hearthline up": everything on this machine, in one process, fed by simulated homes.
On a cluster each role is a process of its own: gateway, stage NAME, sink NAME.`,
		Example: `  hearthline up                      # everything, here, now
  hearthline lint                    # does pipeline.yaml fit together?
  hearthline graph --format svg      # draw it
  hearthline plan                    # what would this file change of what runs?
  hearthline tap readings            # watch rows as they pass
  hearthline stage score             # one role, on a cluster`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			o.log = newLogger(cmd.ErrOrStderr(), o)
			return nil
		},
	}
	f := root.PersistentFlags()
	f.StringVarP(&o.pipeline, "pipeline", "p", envOr("HEARTHLINE_PIPELINE", "pipeline.yaml"), "the pipeline to run")
	f.StringVarP(&o.data, "data", "d", envOr("HEARTHLINE_DATA", "data"), "folder for all that this machine keeps")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log what is done in detail")
	f.BoolVar(&o.jsonLog, "log-json", os.Getenv("HEARTHLINE_LOG") == "json", "log as JSON lines")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newUp(o), newGateway(o), newSource(o), newStage(o), newSink(o), newLint(o), newGraph(o), newTap(o), newTest(o), newNew(o),
		newPlan(o), newCompare(o), newPromote(o), newDrop(o), newReplay(o), newSimulate(o), newRender(o), newEnvironments(o), newCredential(o), newHealth(o), newVersion())
	for _, c := range root.Commands() {
		if args := c.Args; args != nil {
			c.Args = func(cmd *cobra.Command, a []string) error {
				if args(cmd, a) == nil {
					return nil
				}
				return usagef("%s has %d arguments; it is used so: %s", cmd.CommandPath(), len(a), cmd.UseLine())
			}
		}
	}
	return root
}

func newLogger(out io.Writer, o *options) *slog.Logger {
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	opts := &slog.HandlerOptions{Level: level}
	if o.jsonLog {
		return slog.New(slog.NewJSONHandler(jsonLines{out}, opts))
	}
	return slog.New(slog.NewTextHandler(textLines{out}, opts))
}

func envOr(name, otherwise string) string {
	if v, ok := os.LookupEnv(name); ok {
		return v
	}
	return otherwise
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which build this is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "hearthline", version)
			return err
		},
	}
}
