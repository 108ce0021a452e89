package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/chpool"
	"github.com/apache/arrow/go/v15/arrow"
	"github.com/sourcegraph/conc"

	"hearthline/flow"
)

// proxy stands between a sink and the engine, and does to the bytes what networks do.
type proxy struct {
	l  net.Listener
	to string
	wg conc.WaitGroup

	mu      sync.Mutex
	conns   []net.Conn
	delay   time.Duration // of every piece, both ways
	asked   int           // bytes that went to the server
	silent  bool          // answers to inserts are lost: what is asked for happens, and nobody learns of it
	stalled bool          // nothing passes, and nothing is refused
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", freeAddr())
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, to: to}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) accept() {
	for {
		client, err := p.l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		at := p.to
		p.mu.Unlock()
		server, err := net.Dial("tcp", at)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, server)
		p.mu.Unlock()
		p.wg.Go(func() { p.pass(server, client, false) })
		p.wg.Go(func() { p.pass(client, server, true) })
	}
}

// insertBytes is above what a question takes, and below what an insert of these tests does.
const insertBytes = 10_000

func (p *proxy) pass(to io.WriteCloser, from io.Reader, answer bool) {
	defer to.Close()
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		if !answer {
			p.asked += n
		}
		delay, lost, stalled := p.delay, answer && p.silent && p.asked > insertBytes, p.stalled
		p.mu.Unlock()
		if lost || stalled {
			continue
		}
		time.Sleep(delay)
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// set changes what the proxy does.
func (p *proxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// cut ends every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// until writes a range again and again, as the runtime does, until it is written. It gives the last error before that.
func until(t testing.TB, s *Sink, r flow.Range, recs ...arrow.Record) (last error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		err := s.Write(t.Context(), r, recs)
		if err == nil {
			return last
		}
		if errors.Is(err, flow.ErrBad) {
			t.Fatalf("taken for bad data: %v", err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("not written within a minute: %v", err)
		}
		last = err
		time.Sleep(20 * time.Millisecond)
	}
}

// answers waits until the server answers queries: connections that it lost fail once each, and the embedded engine falls
// over a client that leaves in the middle of an insert, and is started again.
func answers(t testing.TB, s *Sink) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for good := 0; good < maxQueries; {
		if _, err := s.Query(t.Context(), 1, "SELECT 1"); err == nil {
			good++
			continue
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
		good = 0
		time.Sleep(20 * time.Millisecond)
	}
}

// refuse writes a range and wants an error of the world that says all of says.
func refuse(t testing.TB, s *Sink, r flow.Range, rec arrow.Record, says ...string) {
	t.Helper()
	err := s.Write(t.Context(), r, []arrow.Record{rec})
	// Other tests make the engine fall; what it says is heard once it is back.
	for deadline := time.Now().Add(time.Minute); err != nil && strings.Contains(err.Error(), "EOF") && time.Now().Before(deadline); {
		time.Sleep(200 * time.Millisecond)
		err = s.Write(t.Context(), r, []arrow.Record{rec})
	}
	if err == nil || errors.Is(err, flow.ErrBad) {
		t.Fatalf("error %v; want one of the world that says %q", err, says)
	}
	for _, part := range says {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %v; want %q in it", err, part)
		}
	}
}

// The network and the server do their worst between two writings of a range: it is stored once, in the table and in all
// that views make of it.
func TestNetworkAtItsWorst(t *testing.T) {
	undisturbed := openSink(t)
	mem := checkedMem(t)
	rec := readings(t, mem, 11, 3000, testDay.Add(23*time.Hour+30*time.Minute))
	for n := range int64(6) {
		write(t, undisturbed, "readings", 10*n, rec)
	}
	want := state(t, undisturbed)

	direct := openSink(t)
	s := newSink(t)
	s.Database = direct.Database
	p := newProxy(t, engine.ends.TCP)
	s.Address, s.answer = p.l.Addr().String(), 2*time.Second
	open(t, s)
	defer s.Close()
	r := func(n int64) flow.Range { return rangeOf("readings", 0, 10*n, 10*n+9) }
	until(t, s, r(0), rec)

	t.Log("the answer is lost, though the insert took effect")
	p.set(func() { p.silent, p.asked = true, 0 })
	refuse(t, s, r(1), rec)
	if got := scalar(t, direct, "SELECT count() FROM readings"); got != "6000" {
		t.Errorf("%s rows: the insert whose answer was lost did not take effect, so this tests nothing", got)
	}
	p.set(func() { p.silent = false })
	p.cut()
	until(t, s, r(1), rec)

	t.Log("half-open: bytes go nowhere")
	p.set(func() { p.stalled = true })
	begun := time.Now()
	refuse(t, s, r(2), rec)
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("given up after %v; the limit is %v", took, s.answer)
	}
	p.set(func() { p.stalled = false })
	p.cut()
	until(t, s, r(2), rec)

	t.Log("slow: every piece takes a while")
	p.set(func() { p.delay = 400 * time.Millisecond })
	p.cut() // a new connection: its greeting comes late
	s.answer = time.Minute
	until(t, s, r(3), rec)
	p.set(func() { p.delay = 0 })

	t.Log("connections are cut in the middle, again and again")
	stop := make(chan struct{})
	var cutting conc.WaitGroup
	cutting.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(1+n) * time.Millisecond): // later each time, so the writing comes through
				p.cut()
			}
		}
	})
	until(t, s, r(4), rec)
	close(stop)
	cutting.Wait()

	t.Log("refused: nobody listens")
	p.set(func() { p.to = freeAddr() })
	p.cut()
	refuse(t, s, r(5), rec)
	p.set(func() { p.to = engine.ends.TCP })
	until(t, s, r(5), rec)
	answers(t, direct)
	if got := state(t, direct); got != want {
		t.Errorf("after all that\n got %s\nwant %s", got, want)
	}
}

// A server that is stopped in the middle of what it does takes connections and answers nothing; then it goes on.
func TestServerThatStandsStill(t *testing.T) {
	own := newTestEngine(t.TempDir())
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { own.stop() }()
	s := New()
	s.Address, s.User, s.Password = own.ends.TCP, own.ends.Writer.Name, own.ends.Writer.Password
	s.answer = 2 * time.Second
	open(t, s)
	defer s.Close()
	rec := readings(t, checkedMem(t), 3, 2000, testDay)
	write(t, s, "readings", 0, rec)
	pid := enginePID(t, own.dir)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	for range 2 {
		refuse(t, s, rangeOf("readings", 0, 10, 19), rec)
	}
	if took := time.Since(stopped); took > 30*time.Second {
		t.Errorf("two writings took %v to be given up", took)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	until(t, s, rangeOf("readings", 0, 10, 19), rec)
	answers(t, s)
	if got := scalar(t, s, "SELECT (count(), (SELECT sum(rows) FROM readings_1m) = countIf(isFinite(value))) FROM readings"); got != "(4000,1)" {
		t.Errorf("rows, and whether the minutes have them: %s", got)
	}
}

// The server refuses for a while, each time for another reason. The reason is said, with what to do, and when it is
// gone the range is stored once.
func TestServerThatRefusesForAWhile(t *testing.T) {
	s := openSink(t)
	rec := readings(t, checkedMem(t), 5, 1000, testDay)
	write(t, s, "readings", 0, rec)
	exec := func(sql string) {
		t.Helper()
		if err := s.queries.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	// with sends inserts under settings that an administrator might have set for the user.
	with := func(set ...ch.Setting) (undo func()) {
		t.Helper()
		opt, err := s.options()
		if err != nil {
			t.Fatal(err)
		}
		o := s.insertOptions(opt)
		o.ClientOptions.Settings = set
		limited, err := chpool.Dial(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		before := s.inserts
		s.inserts = limited
		return func() { limited.Close(); s.inserts = before }
	}
	for n, c := range []struct {
		name string
		do   func() (undo func())
		says []string
	}{
		{"too many parts", func() func() {
			exec("SYSTEM STOP MERGES " + quote(s.Database) + ".readings")
			exec("ALTER TABLE readings MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1")
			return func() {
				exec("ALTER TABLE readings RESET SETTING parts_to_throw_insert, parts_to_delay_insert")
				exec("SYSTEM START MERGES " + quote(s.Database) + ".readings")
			}
		}, []string{"252", "it will catch up"}},
		{"memory", func() func() { return with(ch.SettingInt("max_memory_usage", 1000)) }, []string{"241", "short of memory"}},
		{"too many queries", func() func() {
			undo := with(ch.SettingInt("max_concurrent_queries_for_user", 1))
			ctx, cancel := context.WithCancel(t.Context())
			var busy conc.WaitGroup
			busy.Go(func() {
				_ = s.queries.Exec(ctx, "SELECT sleepEachRow(0.1) FROM numbers(600) SETTINGS max_block_size = 1")
			})
			for scalar(t, s, "SELECT count() FROM system.processes WHERE query LIKE 'SELECT sleepEachRow%'") == "0" {
				time.Sleep(5 * time.Millisecond)
			}
			return func() { cancel(); busy.Wait(); undo() }
		}, []string{"202", "lower connections"}},
		{"only reading", func() func() { return with(ch.SettingInt("readonly", 1)) }, []string{"164", "may only read"}},
		{"a full disk", func() func() {
			exec("ALTER TABLE readings MODIFY SETTING min_free_disk_bytes_to_perform_insert = 1000000000000000")
			return func() { exec("ALTER TABLE readings RESET SETTING min_free_disk_bytes_to_perform_insert") }
		}, []string{"243", "disk is full"}},
		{"a setting that it does not know", func() func() {
			return with(ch.Setting{Key: "count_every_row_once", Value: "1", Important: true})
		}, []string{"115", "24.8 or newer"}},
	} {
		r := rangeOf("readings", 0, int64(10*n+100), int64(10*n+109))
		before := state(t, s)
		undo := c.do()
		t.Log(c.name)
		refuse(t, s, r, rec, c.says...)
		refuse(t, s, r, rec)
		undo()
		if got := state(t, s); got != before {
			t.Errorf("%s: something was stored all the same: %s; before %s", c.name, got, before)
		}
		until(t, s, r, rec)
		if got, want := scalar(t, s, "SELECT count() FROM readings"), fmt.Sprint(1000*(n+2)); got != want {
			t.Errorf("%s: %s rows; want %s", c.name, got, want)
		}
	}
}
