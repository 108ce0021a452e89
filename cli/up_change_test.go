package cli

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/cli/clitest"
)

// TestUpFollowsItsFile saves one change after the other while hubs send: stages and sinks go on with each within seconds, what does not
// fit or is not for a running system leaves all as it is, and in the end each acknowledged row is there once.
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
	saved := func(next, says string) {
		t.Helper()
		before := len(up.Out.String())
		begun := time.Now()
		i.Write(next)
		for deadline := begun.Add(time.Minute); !strings.Contains(up.Out.String()[before:], says); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("did not say %q:\n%s", says, clitest.LastLines(up.Out.String(), 30))
			}
		}
		t.Logf("%q %v after it was saved", says, time.Since(begun).Round(10*time.Millisecond))
		clitest.More(t, homes, ended, 150)
	}
	added := edit(t, file, "  alert: ", "  overheat:\n    use: alert\n    from: scores\n    to: hot\n  alert: ")
	added = edit(t, added, "alerts, commands, \"*.dead\"]", "alerts, commands, hot, \"*.dead\"]")
	const goesOn = "sinks go on with it"
	saved(added, goesOn)
	saved(edit(t, added, "    from: scores\n    to: hot", "    from: scoers\n    to: hot"), "does not fit together")
	saved(edit(t, added, "linger: 25ms", "linger: 30ms"), "another gateway, which takes effect at the next start")
	saved(edit(t, added, "token_env: HEARTHLINE_CONSOLE_TOKEN", "insecure: true"), "another console, which takes effect at the next start")
	saved(edit(t, added, "windows: [1m, 5m/1m]", "windows: [1m, 10m]"), "what runs goes on as it was, since stage features")
	saved(edit(t, added, "    to: hot", "    to: hot\n    settings: {clear: 2}"), goesOn)
	res, err := http.Get("http://" + i.Console + "/api/graph")
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || !strings.Contains(string(page), "overheat") {
		t.Errorf("the console does not know the new stage: %v, %s", err, page)
	}
	saved(file, goesOn) // the stage is gone again
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
	} {
		if got := i.Query(sql)[0]; got != want {
			t.Errorf("%s gives %s, want %s", sql, got, want)
		}
	}
	up.Stop()
}
