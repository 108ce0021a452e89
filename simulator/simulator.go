package simulator

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// Simulator plays homes against a gateway. Its exported fields are its settings; set them before Run and leave them.
type Simulator struct {
	Gateway    string `yaml:"gateway"`     // host:port of the gateway's MQTT over TLS; several, separated by commas, share the homes
	CAFile     string `yaml:"ca_file"`     // PEM certificates that the gateway's is checked against; empty for the system's
	JournalDir string `yaml:"journal_dir"` // where simulator.journal is kept, and simulator.lock

	Homes    int           `yaml:"homes"`    // simulated homes, 0 to 1,000,000
	Seed     uint64        `yaml:"seed"`     // what the simulated homes are made of; fixed for the life of a journal
	Interval time.Duration `yaml:"interval"` // each device's time between readings, at least 1 ms
	History  time.Duration `yaml:"history"`  // how long ago the readings of new homes begin; played until now as fast as acknowledged
	Backlog  time.Duration `yaml:"backlog"`  // homes that were stopped, or whose computer slept, for longer than this skip what they missed; 0 for never

	Recorded bool    `yaml:"recorded"` // play the recorded rooms beside them
	Speed    float64 `yaml:"speed"`    // how many times faster than recorded; 0 for as fast as acknowledged. Its first lap ends now, later ones are live

	Rounds       int64         `yaml:"rounds"`        // readings that each device of a simulated home makes in all, over all runs; 0 for no end
	RecordedRows int64         `yaml:"recorded_rows"` // rows of each recording to play in all, over all runs (looping); 0 for no end
	Duration     time.Duration `yaml:"duration"`      // how long a run generates; 0 for no end

	States bool `yaml:"states"` // hubs say what all their devices are when they connect; what one was told to be they say anyway

	Faults     Faults        `yaml:"faults"`
	OfflineFor time.Duration `yaml:"offline_for"` // how long an Offline hub stays away

	MQTT         int           `yaml:"mqtt"`          // 4 for MQTT 3.1.1, 5 for MQTT 5, 0 for both: every other home
	Window       int           `yaml:"window"`        // messages that a hub may have unacknowledged, 1 to 64
	KeepAlive    time.Duration `yaml:"keep_alive"`    // whole seconds
	AckTimeout   time.Duration `yaml:"ack_timeout"`   // after this without an answer, a connection is given up
	BackoffMin   time.Duration `yaml:"backoff_min"`   // waits before reconnecting are random, up to this at first, doubling
	BackoffMax   time.Duration `yaml:"backoff_max"`   // and up to this at most
	ConnectsMax  int           `yaml:"connects_max"`  // connections being made at once
	DrainWait    time.Duration `yaml:"drain_wait"`    // how long a stopped run waits for outstanding acknowledgements
	JournalEvery time.Duration `yaml:"journal_every"` // how often progress is written down

	// Credentials gives a home's user name and password. It must be safe for concurrent use.
	Credentials func(home string) (user, password string) `yaml:"-"`
	Log         *slog.Logger                              `yaml:"-"`

	wall func() time.Time // the wall clock, which goes on while the computer sleeps
	busy atomic.Bool
	last atomic.Pointer[run] // the run going on, or the last one
}

// New is a simulator with the default settings: 200 homes and the recorded rooms, about 1,400 rows a second.
// Gateway, JournalDir and Credentials must be set.
func New() *Simulator {
	return &Simulator{
		Homes: 200, Seed: 1, Interval: 2500 * time.Millisecond, Backlog: 10 * time.Minute,
		Recorded: true, Speed: 600,
		Faults: FewFaults(), OfflineFor: 20 * time.Second,
		Window: 16, KeepAlive: time.Minute, AckTimeout: 30 * time.Second,
		BackoffMin: 250 * time.Millisecond, BackoffMax: 30 * time.Second, ConnectsMax: 16,
		DrainWait: 10 * time.Second, JournalEvery: 200 * time.Millisecond,
		Log: slog.New(slog.DiscardHandler), wall: func() time.Time { return time.Now().Round(0) },
	}
}

// ErrUnacknowledged is returned by a run that was stopped before the gateway had acknowledged all that was sent. The
// next run with the same journal sends it again.
var ErrUnacknowledged = errors.New("readings were sent that the gateway has not acknowledged")

// check says what is wrong with the settings.
func (s *Simulator) check() error { return s.checked(true) }

// Validate says what is wrong with the settings, but for what only Run needs: where the gateway is, the journal, the
// credentials, something to play.
func (s *Simulator) Validate() error { return s.checked(false) }

func (s *Simulator) checked(running bool) error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	for gateway := range strings.SplitSeq(s.Gateway, ",") {
		_, _, err := net.SplitHostPort(strings.TrimSpace(gateway))
		need(!running || err == nil, "gateway is %q; want host:port of MQTT over TLS, such as localhost:8883", gateway)
	}
	need(!running || s.JournalDir != "", "journal_dir is empty; name a folder to remember progress in")
	need(!running || s.Credentials != nil, "no credentials: set Credentials")
	need(s.Homes >= 0 && s.Homes <= 1_000_000, "homes is %d; want 0 to 1000000", s.Homes)
	need(!running || s.Homes > 0 || s.Recorded, "homes is 0 and recorded is off: there is nothing to play")
	need(s.Interval >= time.Millisecond, "interval is %v; want 1ms or more", s.Interval)
	need(s.History >= 0 && s.Backlog >= 0 && s.Duration >= 0, "history, backlog and duration must not be negative")
	need(s.Speed >= 0 && s.Speed < 1e9, "speed is %v; want 0 (as fast as acknowledged) or a factor such as 600", s.Speed)
	need(s.Rounds >= 0 && s.RecordedRows >= 0, "rounds and recorded_rows must not be negative")
	need(s.MQTT == 0 || s.MQTT == version311 || s.MQTT == version5, "mqtt is %d; want 4 (3.1.1), 5, or 0 for both", s.MQTT)
	need(s.Window >= 1 && s.Window <= 64, "window is %d; want 1 to 64", s.Window)
	need(s.KeepAlive >= time.Second && s.KeepAlive <= 65535*time.Second, "keep_alive is %v; want 1s to 65535s", s.KeepAlive)
	need(s.BackoffMin > 0 && s.BackoffMax >= s.BackoffMin, "backoff_min is %v and backoff_max is %v; want 0 < backoff_min ≤ backoff_max", s.BackoffMin, s.BackoffMax)
	need(s.ConnectsMax >= 1, "connects_max is %d; want 1 or more", s.ConnectsMax)
	need(s.AckTimeout > 0 && s.DrainWait >= 0 && s.OfflineFor >= 0, "ack_timeout must be above 0, drain_wait and offline_for not below")
	need(s.JournalEvery > 0 && s.JournalEvery <= time.Second, "journal_every is %v; want above 0, at most 1s", s.JournalEvery)
	if err := s.Faults.check(); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("simulator settings: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

// tls gives the settings that all hubs share. X25519 and P-256 only: the post-quantum exchange costs each
// connection some 3 KB for as long as it lasts, and readings of homes that do not exist need no secrecy for decades.
func (s *Simulator) tls() (*tls.Config, error) {
	first, _, _ := strings.Cut(s.Gateway, ",") // one certificate is for all of them
	host, _, _ := net.SplitHostPort(first)
	c := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256}}
	if s.CAFile == "" {
		return c, nil
	}
	pem, err := os.ReadFile(s.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read ca_file: %w", err)
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read ca_file: %s holds no PEM certificate", s.CAFile)
	}
	return c, nil
}

func (s *Simulator) journalPath() string { return filepath.Join(s.JournalDir, "simulator.journal") }

// ExpectedRows is the number of good rows acknowledged over all runs of this journal: what is to be stored, each
// once, when a run has ended without [ErrUnacknowledged]. Before the first run it is read from the journal.
func (s *Simulator) ExpectedRows() (int64, error) {
	if r := s.last.Load(); r != nil {
		rows := r.rows()
		return rows[Good], nil
	}
	j, err := readJournal(s.journalPath())
	if err != nil {
		return 0, err
	}
	return j.head.Rows[Good.String()], nil
}

// Stats tells what has been done; the zero Stats before the first run. Safe at any time.
func (s *Simulator) Stats() Stats {
	r := s.last.Load()
	if r == nil {
		return Stats{}
	}
	c := r.count
	latency := c.latency.quantiles(0.5, 0.99)
	out := Stats{
		Homes: len(r.hubs), Connected: int(c.connected.Load()), Finished: int(c.finished.Load()),
		Executed: c.executed.Load(), TooLate: c.tooLate.Load(), Repeated: c.repeated.Load(), Complied: c.complied.Load(),
		Generated: c.generated.Load(), Outstanding: c.outstanding.Load(),
		Bad: map[string]int64{}, Refused: named(&c.refused),
		Resent: c.resent.Load(), Duplicates: c.duplicates.Load(),
		Reconnects: c.reconnects.Load(),
		Broken:     named(&c.broken), Unavailable: c.unavailable.Load(),
		LatencyP50: latency[0], LatencyP99: latency[1],
	}
	if text := c.lastError.Load(); text != nil {
		out.LastError = *text
	}
	for f, n := range r.rows() {
		if Fault(f) == Good {
			out.Acknowledged = n
		} else if n != 0 {
			out.Bad[Fault(f).String()] = n
		}
	}
	return out
}

// Positions tells how far each hub has come, in the order of [Simulator.HomeNames]; nil before the first run.
func (s *Simulator) Positions() []Position {
	r := s.last.Load()
	if r == nil {
		return nil
	}
	out := make([]Position, len(r.hubs))
	for i, h := range r.hubs {
		h.mu.Lock()
		out[i] = Position{Home: h.plan.name, Acknowledged: h.acknowledged / h.plan.devices()}
		h.mu.Unlock()
		out[i].Rounds = h.plan.stretches[len(h.plan.stretches)-1].terms.Rounds
	}
	return out
}

// Labels lists the anomalies among the acknowledged readings of the simulated homes: what a detector should find. It
// makes them again from the seed, which takes some 100 ns a reading. Nil before the first run.
func (s *Simulator) Labels() []Label {
	r := s.last.Load()
	if r == nil {
		return nil
	}
	var out []Label
	for _, h := range r.hubs {
		h.mu.Lock()
		end := h.acknowledged
		h.mu.Unlock()
		out = append(out, h.plan.labels(end)...)
	}
	return out
}
