package cli

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"hearthline/cli/clitest"
)

// followWithin is how soon a changed graph has to run.
const followWithin = 2 * time.Second

var followedAfter = regexp.MustCompile(`sinks go on with it, after ([0-9.a-zµ]+)`)

// TestUpFollowsItsFile saves one change after the other while hubs send: what a change is about goes on with it within two seconds, everything
// else does not even leave its group; what does not fit or is not for a running system leaves all as it is; and in the end each
// acknowledged row is there once, also of a stage that came, was changed, went and came back.
func TestUpFollowsItsFile(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	i := clitest.New(t)
	raw, err := os.ReadFile(i.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	file := string(raw)
	homes := i.Homes(6, 1_000_000, 0)
	homes.History, homes.Interval = 0, 50*time.Millisecond
	up := i.Up("--no-homes")
	playing, stop := context.WithCancel(t.Context())
	defer stop()
	ended := clitest.Play(playing, homes)
	clitest.More(t, homes, ended, 150)
	var took []time.Duration
	// anew: the nodes that have to do with the change.
	saved := func(next, says, anew string) {
		t.Helper()
		said, before := len(up.Out.String()), membersOf(t, i)
		begun := time.Now()
		i.Write(next)
		for deadline := begun.Add(2 * time.Minute); !strings.Contains(up.Out.String()[said:], says); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("did not say %q:\n%s", says, clitest.LastLines(up.Out.String(), 30))
			}
		}
		for !runAnew(t, i, before, strings.Fields(anew)) {
			if time.Sleep(10 * time.Millisecond); time.Since(begun) > 2*time.Minute {
				t.Fatalf("%q: not all of %s run anew", says, anew)
			}
		}
		t.Logf("%q, and %q run anew, %v after it was saved", says, anew, time.Since(begun).Round(10*time.Millisecond))
		if m := followedAfter.FindStringSubmatch(up.Out.String()[said:]); m != nil {
			d, err := time.ParseDuration(m[1])
			if err != nil {
				t.Fatal(err)
			}
			took = append(took, d)
		}
		clitest.More(t, homes, ended, 150)
		for node, member := range membersOf(t, i) {
			if before[node] != member && !slices.Contains(strings.Fields(anew), node) {
				t.Errorf("%q: %s has left its group, and has nothing to do with what was changed", says, node)
			}
		}
	}
	stage := "  again:\n    use: score\n    from: readings\n    to: again\n"
	added := edit(t, file, "  alert: ", stage+"  alert: ")
	added = edit(t, added, "alerts, commands, \"*.dead\"]", "alerts, commands, again, \"*.dead\"]")
	const goesOn = "sinks go on with it"
	saved(added, "+ stage again: begins at the oldest batch kept of readings", "again clickhouse")
	saved(edit(t, added, "    to: again", "    to: agian"), "does not fit together", "")
	saved(edit(t, added, "linger: 25ms", "linger: 30ms"), "another gateway, which takes effect at the next start", "")
	saved(edit(t, added, "token_env: HEARTHLINE_CONSOLE_TOKEN", "insecure: true"), "another console, which takes effect at the next start", "")
	saved(edit(t, added, "windows: [1m, 5m/1m]", "windows: [1m, 10m]"), "what runs goes on as it was, since stage features", "")
	changed := edit(t, added, "    to: again", "    to: again\n    settings: {forget: 48h}")
	saved(changed, goesOn, "again")
	res, err := http.Get("http://" + i.Console + "/api/graph")
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || !strings.Contains(string(page), "again") {
		t.Errorf("the console does not know the new stage: %v, %s", err, page)
	}
	saved(file, "keeps again no more; batches of it that it has not taken", "clickhouse")
	saved(changed, goesOn, "again clickhouse") // put back, it goes on where it was
	saved("# one line more\n"+changed, goesOn, "")
	// The machine may be busy with other tests: who waits for something waits each time.
	if len(took) != 5 || slices.Min(took) > followWithin {
		t.Errorf("five changes were gone on with after %v, want five, and the fastest within %v", took, followWithin)
	}
	stop()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	up.Stop()
	want, err := homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	up = i.Up("--no-homes")
	for sql, want := range map[string]string{
		"SELECT count() FROM readings":                                        strconv.FormatInt(want, 10),
		"SELECT count() - uniqExact(home, device, metric, seq) FROM readings": "0",
		"SELECT count() FROM dead":                                            "0",
		"SELECT count() - (SELECT count() FROM scores) FROM again":            "0",
		"SELECT count() - uniqExact(home, device, metric, seq) FROM again":    "0",
		"SELECT count() > 0 FROM again":                                       "1",
	} {
		if got := i.Query(sql)[0]; got != want {
			t.Errorf("%s gives %s, want %s", sql, got, want)
		}
	}
	up.Stop()
}

// membersOf gives who is in the group of each node, by the node's name.
func membersOf(t *testing.T, i *clitest.Installation) map[string]string {
	t.Helper()
	c := &kafka.Client{Addr: kafka.TCP(i.Kafka), Timeout: 10 * time.Second}
	all, err := c.ListGroups(t.Context(), &kafka.ListGroupsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	req := &kafka.DescribeGroupsRequest{}
	for _, g := range all.Groups {
		req.GroupIDs = append(req.GroupIDs, g.GroupID)
	}
	groups, err := c.DescribeGroups(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	members := map[string]string{}
	for _, g := range groups.Groups {
		for _, m := range g.Members {
			members[strings.TrimPrefix(g.GroupID, "homes.")] += m.MemberID + " " + g.GroupState
		}
	}
	return members
}

// runAnew says whether nodes are in their groups as others than before, and work on their partitions.
func runAnew(t *testing.T, i *clitest.Installation, before map[string]string, nodes []string) bool {
	t.Helper()
	if len(nodes) == 0 {
		return true
	}
	res, err := http.Get("http://" + i.Console + "/metrics")
	if err != nil {
		return false // the console is starting
	}
	metrics, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil {
		return false
	}
	now := membersOf(t, i)
	return !slices.ContainsFunc(nodes, func(n string) bool {
		return now[n] == "" || now[n] == before[n] || !strings.Contains(string(metrics), "hearthline_offset{node=\""+n+"\"")
	})
}
