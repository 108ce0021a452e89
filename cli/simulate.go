package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"hearthline/ingest/identity"
	"hearthline/simulator"
)

func newSimulate(o *options) *cobra.Command {
	sim := simulator.New()
	faults := "few"
	var credentials string
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Play simulated homes and recorded rooms against a gateway",
		Long: `Connects N simulated hubs, and those that play the recorded rooms, to a gateway over MQTT and TLS. A reading
counts when the gateway has acknowledged it; what was not acknowledged is sent again, also by the
next run, which goes on where this one stopped (--journal).

By default it plays against the "hearthline up --no-homes" of the same data folder.

Exit code 0: everything sent was acknowledged. 1: not; the next run sends the rest again.`,
		Example: `  hearthline simulate --homes 50 --interval 1s
  hearthline simulate --homes 10 --faults all --duration 1m
  hearthline simulate --gateway hub.example:8883 --ca ca.pem --passwords passwords.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := sim.Faults.UnmarshalText([]byte(faults)); err != nil {
				return usageError{fmt.Errorf("--faults: %w", err)}
			}
			if err := sim.Validate(); err != nil {
				return usageError{err}
			}
			return simulate(cmd, o, sim, credentials)
		},
	}
	f := cmd.Flags()
	f.StringVar(&sim.Gateway, "gateway", "127.0.0.1:8883", "host:port of the gateway's MQTT over TLS")
	f.StringVar(&sim.CAFile, "ca", "", "certificates to check the gateway's against (default: the development CA of --data)")
	f.StringVar(&sim.JournalDir, "journal", "", "folder to remember progress in (default: simulator in --data)")
	f.StringVar(&credentials, "passwords", "", "JSON file of passwords by user; users are named like their homes (default: those of --data, made when missing)")
	f.IntVar(&sim.Homes, "homes", sim.Homes, "simulated homes")
	f.DurationVar(&sim.Interval, "interval", sim.Interval, "time between the readings of a device")
	f.Uint64Var(&sim.Seed, "seed", sim.Seed, "what the homes are made of")
	f.BoolVar(&sim.Recorded, "recorded", sim.Recorded, "play the recorded rooms")
	f.Float64Var(&sim.Speed, "speed", sim.Speed, "how many times faster than recorded the rooms are played; 0 = as fast as acknowledged")
	f.DurationVar(&sim.Duration, "duration", 0, "how long to play; 0 = until Ctrl-C")
	f.Int64Var(&sim.Rounds, "rounds", 0, "readings of each device in all; 0 = no end")
	f.StringVar(&faults, "faults", faults, "what goes wrong: none, few, all, or a list such as few,nan=0.01")
	return cmd
}

func simulate(cmd *cobra.Command, o *options, sim *simulator.Simulator, passwordFile string) error {
	sim.Log = o.log.With("node", "simulator")
	if sim.JournalDir == "" {
		sim.JournalDir = filepath.Join(o.data, "simulator")
	}
	if sim.CAFile == "" {
		sim.CAFile = filepath.Join(o.data, "gateway", "ca.pem")
		if _, err := os.Stat(sim.CAFile); err != nil {
			return usagef("no development CA in %s: start `hearthline up --no-homes` with the same --data first, or name one with --ca", o.data)
		}
	}
	passwords, err := homePasswords(o, sim, passwordFile)
	if err != nil {
		return err
	}
	sim.Credentials = func(home string) (string, string) { return home, passwords[home] }
	s := newScreen(cmd.OutOrStdout(), true)
	ctx := cmd.Context()
	done := make(chan struct{})
	shown := services{log: o.log, fatal: func(err error) { o.log.Error("progress display", "error", err) }}
	shown.start(ctx, "progress", func(ctx context.Context) error { return showSimulation(ctx, s, sim, done) })
	err = sim.Run(ctx)
	close(done)
	shown.endAll()
	st := sim.Stats()
	s.say("rows acknowledged, over all runs: %s; resent messages %s; reconnects %s; p99 publish→ack %v",
		count(st.Acknowledged), count(st.Resent), count(st.Reconnects), st.LatencyP99.Round(100*time.Microsecond))
	for _, fault := range sortedFaults(st.Bad) {
		s.say("  deliberately %s: %s rows, which must not be stored", fault, count(st.Bad[fault]))
	}
	if errors.Is(err, simulator.ErrUnacknowledged) {
		return fmt.Errorf("%w; run it again to send the rest", err)
	}
	return err
}

// homePasswords reads the homes' passwords, or makes development credentials, which a running gateway of the same
// data folder takes up by itself.
func homePasswords(o *options, sim *simulator.Simulator, file string) (map[string]string, error) {
	if file != "" {
		return readPasswords(file)
	}
	var users []identity.DevUser
	for _, home := range sim.HomeNames() {
		users = append(users, identity.DevUser{User: home, Home: home})
	}
	_, passwords, err := identity.DevCredentials(filepath.Join(o.data, "gateway"), users...)
	if err != nil {
		return nil, fmt.Errorf("development credentials: %w", err)
	}
	return passwords, nil
}
