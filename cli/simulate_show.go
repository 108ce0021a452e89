package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"hearthline/simulator"
)

// showSimulation prints a line every few seconds until the run is over.
func showSimulation(ctx context.Context, s *screen, sim *simulator.Simulator, done <-chan struct{}) error {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-done:
			return nil
		case <-tick.C:
			st := sim.Stats()
			line := fmt.Sprintf("homes %d of %d  acknowledged %s  outstanding %s  p99 %v", st.Connected, st.Homes, count(st.Acknowledged),
				count(st.Outstanding), st.LatencyP99.Round(100*time.Microsecond))
			if st.LastError != "" && st.Connected < st.Homes {
				line += "  " + st.LastError
			}
			s.say("%s", line)
		}
	}
}

func readPasswords(file string) (map[string]string, error) {
	b, err := os.ReadFile(file) // #nosec G304 -- the user names the file
	if err != nil {
		return nil, usageError{err}
	}
	passwords := map[string]string{}
	if err := json.Unmarshal(b, &passwords); err != nil {
		return nil, usagef("%s: want a JSON object of passwords by user: %w", file, err)
	}
	return passwords, nil
}

func sortedFaults(m map[string]int64) []string { return slices.Sorted(maps.Keys(m)) }
