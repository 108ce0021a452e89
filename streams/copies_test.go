package streams_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"hearthline/streams"
	"hearthline/streams/streamstest"
)

// Whoever runs a cluster on which an acknowledgement stands for one copy is told; with kafka.replication set it stands
// for two.
func TestThinCopiesAreTold(t *testing.T) {
	_, addrs := startCluster(t, 3)
	for _, c := range []struct {
		name        string
		replication int
		want        string
	}{
		{"one-copy", 1, "one copy in a cluster of several brokers"},
		{"three-copies", 3, ""},
		{"brokers-choice", -1, "min.insync.replicas is 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var said bytes.Buffer
			cfg := streams.New()
			cfg.Brokers, cfg.Replication = addrs, c.replication
			client, err := streams.Dial(streamstest.Context(t), cfg, slog.New(slog.NewTextHandler(&said, nil)))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if err := client.Ensure(streamstest.Context(t), []streams.Spec{{Name: c.name, Partitions: 2}}); err != nil {
				t.Fatal(err)
			}
			warned := ""
			for _, line := range strings.Split(said.String(), "\n") {
				if strings.Contains(line, c.name) {
					warned += line
				}
			}
			if c.want == "" && warned != "" || !strings.Contains(warned, c.want) {
				t.Errorf("said %q, want %q", warned, c.want)
			}
		})
	}
}
