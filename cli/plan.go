package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/spf13/cobra"

	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/pipeline/run"
	"hearthline/sinks/clickhouse"
	embeddedbroker "hearthline/streams/embedded"
)

// planVerb compares pipeline.yaml with what runs.
type planVerb struct {
	*options
	apply   bool
	json    bool
	allow   []string
	forget  []string
	begin   []string
	consent run.Consent
}

func newPlan(o *options) *cobra.Command {
	v := &planVerb{options: o}
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Show what pipeline.yaml would change of what runs, and carry it out",
		Long: `Compares pipeline.yaml and this binary with what ran last: what is new, what is gone, what is called
or set otherwise, whether the state of each stage fits the new settings and code (it is read with
them), what ClickHouse would have to change, and what is refused since it would lose state or rows.

Most changes need no more than this look: start the roles (or up) with the new file. Those that do
are carried out by --apply while the nodes concerned are stopped; it checks that they are. It may be
interrupted at any time, and run again.

Exit code 0: nothing differs, or --apply has carried it out. 3: something differs, and nothing stands
against it. 4: something is refused. 2: pipeline.yaml or the command line is wrong. 1: Kafka or the
checkpoint store does not answer.`,
		Example: `  hearthline plan                                  # the file here against what runs
  hearthline plan -p new.yaml                      # another file
  hearthline plan --apply --forget webhook         # delete the state of a node that is gone
  hearthline plan --apply --allow lose-state:features
  hearthline plan --begin overheat=now --apply     # a new stage leaves the past alone`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return v.run(cmd) },
	}
	f := cmd.Flags()
	f.BoolVar(&v.apply, "apply", false, "carry out what has to be carried out while nodes are stopped")
	f.BoolVar(&v.json, "json", false, "the changes as one JSON document")
	f.StringSliceVar(&v.allow, "allow", nil, "allow what loses something: lose-state:STAGE, break-schema:STREAM, repartition")
	f.StringSliceVar(&v.forget, "forget", nil, "delete the group and the state of a node that is gone from the file")
	f.StringSliceVar(&v.begin, "begin", nil, "where a new stage begins: STAGE=now, or STAGE=oldest (which it does unless told)")
	return cmd
}

// exitError ends the process with a code of its own. Without an error nothing is printed: it has been.
type exitError struct {
	err  error
	code int
}

func (e exitError) Unwrap() error { return e.err }

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (v *planVerb) run(cmd *cobra.Command) error {
	if err := os.Setenv("HEARTHLINE_DATA", v.data); err != nil {
		return err
	}
	plan, err := load(cmd.Context(), cmd, v.options)
	if err != nil {
		return err
	}
	if err := v.understand(plan); err != nil {
		return err
	}
	p, err := newProcess(v.options, plan)
	if err != nil {
		return err
	}
	brokers, end, err := p.reach(cmd.Context())
	if err != nil {
		return err
	}
	defer end()
	if len(brokers) == 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "%s: nothing of this pipeline has run in %s yet; hearthline up starts it\n", v.pipeline, v.data)
		return exitError{nil, exitChanges}
	}
	if err := p.openCheckpoints(cmd.Context()); err != nil {
		return err
	}
	if err := p.dial(cmd.Context(), brokers); err != nil {
		return err
	}
	defer p.client.Close()
	p.configure(nil)
	r := p.runner(run.Drain{}, nil)
	var changes []run.Change
	if v.apply {
		changes, err = r.Apply(cmd.Context(), v.consent)
	} else {
		changes, err = r.Changes(cmd.Context(), v.consent)
	}
	if err != nil && !errors.Is(err, run.ErrRefused) {
		return err
	}
	changes = append(changes, p.sources(cmd.Context())...)
	changes = append(changes, tables(cmd.Context(), plan)...)
	return v.show(cmd.OutOrStdout(), changes, brokers[0], err)
}

// understand reads what the flags say of the plan's nodes.
func (v *planVerb) understand(plan *pipeline.Plan) error {
	for _, allow := range v.allow {
		stage, ok := strings.CutPrefix(allow, "lose-state:")
		stream, breaks := strings.CutPrefix(allow, "break-schema:")
		switch {
		case allow == "repartition":
			v.consent.Repartition = true
		case breaks && plan.Streams[stream] != nil:
			v.consent.BreakSchema = append(v.consent.BreakSchema, stream)
		case breaks:
			return usagef("--allow %s: no stream %q in %s; it has %s", allow, stream, plan.Spec.File, strings.Join(sortedStreams(plan), ", "))
		case ok && stageOf(plan, stage):
			v.consent.LoseState = append(v.consent.LoseState, stage)
		case ok:
			return usagef("--allow %s: no stage %q in %s; it has %s", allow, stage, plan.Spec.File, stageNames(plan))
		default:
			return usagef("--allow %s: there are lose-state:STAGE, break-schema:STREAM and repartition", allow)
		}
	}
	for _, begin := range v.begin {
		stage, where, ok := strings.Cut(begin, "=")
		switch {
		case !ok || where != "now" && where != "oldest":
			return usagef("--begin %s: want STAGE=now or STAGE=oldest", begin)
		case !stageOf(plan, stage):
			return usagef("--begin %s: no stage %q in %s; it has %s", begin, stage, plan.Spec.File, stageNames(plan))
		case where == "now":
			v.consent.BeginNow = append(v.consent.BeginNow, stage)
		}
	}
	for _, node := range v.forget {
		if stageOf(plan, node) || hasSink(plan, node) {
			return usagef("--forget %s: it is in %s; take it out first", node, plan.Spec.File)
		}
	}
	v.consent.Forget = v.forget
	return nil
}

func stageOf(plan *pipeline.Plan, name string) bool {
	return slices.ContainsFunc(plan.Spec.Stages, func(s pipeline.Stage) bool { return s.Name == name })
}

// reach says where Kafka is. An embedded broker that nobody runs is run meanwhile, on the same data; end ends it. No
// brokers: there is none and never was.
func (p *process) reach(ctx context.Context) (brokers []string, end func(), err error) {
	end = func() {}
	dir := filepath.Join(p.data, "kafka")
	if len(p.plan.Spec.Kafka.Brokers) > 0 {
		return p.brokers(), end, nil
	}
	dialer := net.Dialer{Timeout: time.Second}
	if c, err := dialer.DialContext(ctx, "tcp", p.plan.Spec.Kafka.Listen); err == nil {
		_ = c.Close() // `up` runs
		return p.brokers(), end, nil
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, end, nil
	}
	s := &services{log: p.log}
	life, fatal := context.WithCancelCause(ctx)
	s.fatal = fatal
	ready := make(chan string, 1)
	b := embeddedbroker.New()
	b.Dir, b.Addr, b.Log = dir, p.plan.Spec.Kafka.Listen, p.log.With("node", "broker")
	b.Ready = func(addr string) { ready <- addr }
	s.start(life, "embedded broker", b.Run)
	end = func() { s.endAll(); fatal(nil) }
	waiting, cancel := context.WithTimeoutCause(life, startWait, fmt.Errorf("the embedded broker is not ready within %v", startWait))
	defer cancel()
	at, err := await(waiting, ready)
	if err != nil {
		end()
		return nil, func() {}, err
	}
	return []string{at}, end, nil
}

// tables asks each ClickHouse that can be reached whether its tables take the streams as they will be.
func tables(ctx context.Context, plan *pipeline.Plan) []run.Change {
	var changes []run.Change
	for _, node := range plan.Sinks {
		sink := node.New()
		if c, ok := sink.(*clickhouse.Sink); ok && c.Address == clickhouse.AddressEmbedded {
			continue // lint has compared it with the tables that Hearthline makes there
		}
		server, ok := sink.(interface {
			CheckServer(context.Context, string, *arrow.Schema) error
		})
		if !ok {
			continue
		}
		for _, stream := range node.Streams {
			err := server.CheckServer(ctx, stream, plan.Streams[stream].Schema)
			if errors.Is(err, clickhouse.ErrUnreachable) {
				changes = append(changes, run.Change{Sign: "~", What: "sink " + node.Name, Says: []string{"its tables are not compared: " + err.Error()}})
				break
			}
			if err != nil {
				changes = append(changes, run.Change{Sign: "~", What: "sink " + node.Name, Refused: err.Error(), Way: "give the stream a table of its own, or alter the table"})
			}
		}
		_ = flow.Close(sink) // it was never opened
	}
	return changes
}

// show prints the changes and gives the exit code as an error.
func (v *planVerb) show(w io.Writer, changes []run.Change, broker string, failed error) error {
	refused, byApply := 0, 0
	for _, c := range changes {
		if c.Refused != "" {
			refused++
		} else if c.Apply {
			byApply++
		}
	}
	if v.json {
		if changes == nil {
			changes = []run.Change{}
		}
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		if err := enc.Encode(changes); err != nil {
			return err
		}
	} else {
		v.print(w, changes, broker)
	}
	switch {
	case failed != nil:
		return exitError{failed, exitRefused}
	case refused > 0:
		return exitError{fmt.Errorf("%d of %d changes refused", refused, len(changes)), exitRefused}
	case v.apply:
		v.say(w, "\ncarried out: %d; start the roles, or up, with this file\n", byApply)
		return nil
	case len(changes) == 0:
		return nil
	}
	if byApply > 0 {
		v.say(w, "\nTo be carried out by hearthline plan --apply, while the nodes concerned are stopped: %d. Nothing has been changed.\n", byApply)
	} else {
		v.say(w, "\nNothing stands against it: start the roles, or up, with this file.\n")
	}
	return exitError{nil, exitChanges}
}

func (v *planVerb) say(w io.Writer, format string, args ...any) {
	if !v.json {
		fmt.Fprintf(w, format, args...)
	}
}

func (v *planVerb) print(w io.Writer, changes []run.Change, broker string) {
	if len(changes) == 0 {
		fmt.Fprintf(w, "%s and version %s are what runs at %s\n", v.pipeline, version, broker)
		return
	}
	fmt.Fprintf(w, "%s and version %s, against what runs at %s:\n\n", v.pipeline, version, broker)
	for _, c := range changes {
		mark := ""
		switch {
		case c.Refused != "":
			mark = "  REFUSED"
		case c.Apply:
			mark = "  (by --apply)"
		}
		fmt.Fprintf(w, "%s %s%s\n", c.Sign, c.What, mark)
		for _, line := range c.Says {
			fmt.Fprintf(w, "    %s\n", line)
		}
		if c.Refused != "" {
			fmt.Fprintf(w, "    refused: %s\n    → %s\n", c.Refused, c.Way)
		}
	}
}
