package embedded

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sourcegraph/conc"
)

// freeAddr is a loopback address nobody listens on, below the range the kernel takes ports from by itself.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

// testServer is a server of dir that this test binary runs as its child.
func testServer(t *testing.T, dir string) *Server {
	t.Helper()
	s := New(dir)
	s.HTTPAddr, s.TCPAddr = freeAddr(t), freeAddr(t)
	s.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	return s
}

// start runs s until stop is called, which returns what Run returned.
func start(t *testing.T, s *Server) (ends Endpoints, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan Endpoints, 1), make(chan error, 1)
	s.Ready = func(e Endpoints) { ready <- e }
	var wg conc.WaitGroup
	wg.Go(func() { ended <- s.Run(ctx) })
	stopped := false
	stop = func() error {
		stopped = true
		cancel()
		wg.Wait()
		return <-ended
	}
	t.Cleanup(func() {
		if !stopped {
			if err := stop(); err != nil {
				t.Errorf("stop: %v", err)
			}
		}
	})
	select {
	case ends := <-ready:
		return ends, stop
	case err := <-ended:
		ended <- err
		t.Fatalf("the server ended: %v", err)
	case <-time.After(3 * time.Minute):
		t.Fatal("the server is not ready after 3 minutes")
	}
	panic("unreachable")
}

// ask sends a query as u and returns status and body.
func ask(t *testing.T, addr string, u User, query string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr, strings.NewReader(query))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-ClickHouse-User", u.Name)
	req.Header.Set("X-ClickHouse-Key", u.Password)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(b))
}

func TestUsersMayDoWhatTheyShould(t *testing.T) {
	ends, stop := start(t, testServer(t, t.TempDir()))
	first := User{Name: "default"}
	for _, c := range []struct {
		name  string
		user  User
		query string
		want  string // of the body; "" means: refused
	}{
		{"writer makes the database", ends.Writer, "CREATE DATABASE hearthline", "ok"},
		{"writer makes a table", ends.Writer, "CREATE TABLE hearthline.t (x Int64) ENGINE = MergeTree ORDER BY x", "ok"},
		{"writer makes a view", ends.Writer, "CREATE MATERIALIZED VIEW hearthline.v ENGINE = MergeTree ORDER BY x AS SELECT x FROM hearthline.t", "ok"},
		{"writer fills it", ends.Writer, "INSERT INTO hearthline.t VALUES (1), (2)", "ok"},
		{"writer stays in its database", ends.Writer, "CREATE DATABASE other", ""},
		{"writer sees whether there is room for a table", ends.Writer, "SELECT count() FROM system.disks WHERE name = 'default' AND type = 'Local' AND keep_free_space > 0", "1"},
		{"writer reads what its tables weigh", ends.Writer, "SELECT sum(rows) FROM system.parts WHERE database = 'hearthline' AND table = 't'", "2"},
		{"writer adds a column", ends.Writer, "ALTER TABLE hearthline.t ADD COLUMN y Int64", "ok"},
		{"writer lets no row go", ends.Writer, "ALTER TABLE hearthline.t MODIFY TTL toDateTime(x) + toIntervalSecond(1)", ""},
		{"writer changes no row by a TTL", ends.Writer, "ALTER TABLE hearthline.t MODIFY TTL toDateTime(x) GROUP BY x SET y = max(y) + 1", ""},
		{"writer rewrites no row by a column's TTL", ends.Writer, "ALTER TABLE hearthline.t MODIFY COLUMN y Int64 TTL toDateTime(x)", ""},
		{"writer replaces no table", ends.Writer, "CREATE OR REPLACE TABLE hearthline.t (x Int64) ENGINE = MergeTree ORDER BY x", ""},
		{"writer renames no table", ends.Writer, "RENAME TABLE hearthline.t TO hearthline.u", ""},
		{"writer exchanges no tables", ends.Writer, "EXCHANGE TABLES hearthline.t AND hearthline.v", ""},
		{"writer replaces no partition", ends.Writer, "ALTER TABLE hearthline.t DROP PARTITION tuple()", ""},
		{"writer detaches no table", ends.Writer, "DETACH TABLE hearthline.t", ""},
		{"writer deletes nothing lightly", ends.Writer, "DELETE FROM hearthline.t WHERE 1", ""},
		{"writer merges nothing away", ends.Writer, "OPTIMIZE TABLE hearthline.t FINAL DEDUPLICATE BY x", ""},
		{"writer refreshes nothing", ends.Writer, "CREATE MATERIALIZED VIEW hearthline.r REFRESH EVERY 1 SECOND TO hearthline.t AS SELECT toInt64(9) AS x", ""},
		{"rows are as they were", ends.Admin, "SELECT sleep(2.5) + count() FROM hearthline.t WHERE x IN (1, 2)", "2"},
		{"writer drops no table", ends.Writer, "DROP TABLE hearthline.t", ""},
		{"writer drops no database", ends.Writer, "DROP DATABASE hearthline", ""},
		{"writer empties no table", ends.Writer, "TRUNCATE TABLE hearthline.t", ""},
		{"writer deletes no row", ends.Writer, "ALTER TABLE hearthline.t DELETE WHERE 1", ""},
		{"writer changes no row", ends.Writer, "ALTER TABLE hearthline.t UPDATE y = 1 WHERE 1", ""},
		{"writer drops no column", ends.Writer, "ALTER TABLE hearthline.t DROP COLUMN y", ""},
		{"writer takes no memory of inserts away", ends.Writer, "ALTER TABLE hearthline.t MODIFY SETTING non_replicated_deduplication_window = 0", ""},
		{"writer stops nobody", ends.Writer, "KILL QUERY WHERE user = ''", ""},
		{"writer makes no users", ends.Writer, "CREATE USER x", ""},
		{"writer reads no files", ends.Writer, "SELECT * FROM file('/etc/passwd', 'LineAsString')", ""},
		{"writer keeps no files", ends.Writer, "CREATE TABLE hearthline.f (x String) ENGINE = URL('http://127.0.0.1:1', 'CSV')", ""},
		{"dashboard stops nobody", ends.Dashboard, "KILL QUERY WHERE user = ''", ""},
		{"dashboard reads", ends.Dashboard, "SELECT count() FROM hearthline.v", "2"},
		{"dashboard sets a limit", ends.Dashboard, "SELECT count() FROM hearthline.t SETTINGS max_execution_time = 5", "2"},
		{"dashboard reads health", ends.Dashboard, "SELECT count() > 0 FROM system.metrics", "1"},
		{"dashboard changes nothing", ends.Dashboard, "INSERT INTO hearthline.t VALUES (3)", ""},
		{"dashboard drops nothing", ends.Dashboard, "DROP TABLE hearthline.t", ""},
		{"default reads nothing", first, "SELECT count() FROM hearthline.t", ""},
		{"default makes nothing", first, "CREATE DATABASE mine", ""},
		{"default sees no tables", first, "SELECT count() FROM system.tables WHERE database = 'hearthline'", "0"},
		{"default stops nobody", first, "KILL QUERY WHERE 1", ""},
		{"default reads no files", first, "SELECT * FROM file('/etc/passwd', 'LineAsString')", ""},
		{"default reaches no urls", first, "SELECT * FROM url('http://127.0.0.1:1', 'LineAsString')", ""},
		{"a wrong password", User{"writer", "guess"}, "SELECT 1", ""},
		{"admin", ends.Admin, "SELECT name FROM system.databases WHERE name = 'hearthline'", "hearthline"},
	} {
		status, body := ask(t, ends.HTTP, c.user, c.query)
		switch {
		case c.want == "" && status == http.StatusOK:
			t.Errorf("%s: %s was not refused: %s", c.name, c.query, body)
		case c.want == "ok" && status != http.StatusOK, c.want != "" && c.want != "ok" && body != c.want:
			t.Errorf("%s: %s: status %d: %s; want %s", c.name, c.query, status, body, c.want)
		}
	}
	if fi, err := os.Stat(ends.Engine); err != nil || fi.Size() == 0 {
		t.Errorf("engine %q: %v", ends.Engine, err)
	}
	begun := time.Now()
	if err := stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	t.Logf("stopped in %v", time.Since(begun))
}
