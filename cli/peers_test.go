package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hearthline/ingest"
	"hearthline/pipeline"
)

// What is wrong with the gateway's settings for its neighbours is said with its place.
func TestPeersAreHeldToTheirSettings(t *testing.T) {
	const head = "pipeline: p\ngateway:\n  to: raw\n  settings:\n    peers: {"
	const tail = "}\nsinks: {webhook: {from: raw, settings: {log: true}}}\n"
	const files = "certificate: c, key: k, ca: a"
	for _, c := range []struct {
		settings string
		says     []string
	}{
		{"", nil},
		{"listen: \"0.0.0.0:8884\", " + files, nil},
		{"listen: \"\", " + files, nil},
		{"listen: \"0.0.0.0:8884\", advertise: \"10.0.0.7:8884\", " + files, nil},
		{"listen: nowhere, " + files, []string{`5:21: listen is "nowhere"; want host:port, such as 0.0.0.0:8884`}},
		{"listen: \":8884\", advertise: \":8884\", " + files, []string{`5:41: advertise is ":8884"; want host:port as the other gateways reach it, such as 10.0.0.7:8884`}},
		{"advertise: \"10.0.0.7:8884\"", []string{"5:24: advertise is set, but listen is not: nobody would answer there"}},
		{"listen: \":8884\", certificate: c", []string{"5:5: key is not set: gateways prove to each other who they are", "5:5: ca is not set: gateways prove to each other who they are"}},
		{"heartbeat: 0s, missed_max: 1, queue_max: 0, calls_max: 0, call_timeout: -1s", []string{
			"5:24: heartbeat is 0s; want more than 0", "5:40: missed_max is 1; want 2 or more", "5:54: queue_max is 0; want 1 or more", "5:68: calls_max is 0; want 1 or more",
			"5:85: call_timeout is -1s; want more than 0"}},
		{"advertize: x", []string{`5:13: unknown setting "advertize"; did you mean advertise?`}},
	} {
		file := filepath.Join(t.TempDir(), "p.yaml")
		if err := os.WriteFile(file, []byte(head+c.settings+tail), 0o600); err != nil {
			t.Fatal(err)
		}
		_, findings, err := pipeline.Lint(t.Context(), file, newCatalog())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range findings {
			got = append(got, strings.TrimPrefix(f.String(), file+":"))
		}
		want := slices.Clone(c.says)
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", c.settings, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// Whoever gives a gateway its rights on Kafka finds every table it shares in the docs.
func TestTablesAreInTheDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range ingest.Tables {
		if !strings.Contains(string(text), "`homes."+name+"`") {
			t.Errorf("docs/operations.md does not name the table homes.%s", name)
		}
	}
}
