// Package peers is how gateways know of each other and speak (decision 24). Who is there, who has a session and who has
// subscribed to a home stands in tables; messages and commands go directly, over one gRPC connection with mutual TLS
// to each of the others.
//
// A gateway goes by its start: its instance's name and a random part, as its rows do (decision 16). What a start wrote into a
// table stands under a key of its own, so no two gateways ever write one key, and compaction loses nothing.
package peers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc/pool"
	"google.golang.org/grpc/connectivity"

	"hearthline/ingest/latency"
	"hearthline/ingest/peers/peerspb"
	"hearthline/ingest/table"
)

// Settings are those of the mesh.
type Settings struct {
	Listen      string `yaml:"listen"`      // address for other gateways, mutual TLS 1.3; "" for a gateway that is alone
	Advertise   string `yaml:"advertise"`   // host:port that other gateways reach it by; the listening address by default
	Certificate string `yaml:"certificate"` // PEM file: what this gateway shows others, as server and as client; read again when it changes
	Key         string `yaml:"key"`         // PEM file: its key
	CA          string `yaml:"ca"`          // PEM file: the authority of gateways' certificates, and of nothing else
	ServerName  string `yaml:"server_name"` // Which must stand in the certificates of the others

	Heartbeat   time.Duration `yaml:"heartbeat"`    // between two signs of life in the table of gateways
	MissedMax   int           `yaml:"missed_max"`   // signs of life of this gateway without one of another, before that counts as gone
	QueueMax    int           `yaml:"queue_max"`    // messages that wait for one other gateway; what is more is lost, and counted
	CallTimeout time.Duration `yaml:"call_timeout"` // of one call to another gateway
	CallsMax    int           `yaml:"calls_max"`    // calls of one other gateway that are served at once
}

// Defaults gives the default settings: a gateway that is alone.
func Defaults() Settings {
	return Settings{ServerName: "localhost", Heartbeat: time.Second, MissedMax: 5, QueueMax: 4096, CallTimeout: 2 * time.Second, CallsMax: 256}
}

// Validate says what is wrong with the settings by themselves.
func (s *Settings) Validate() error {
	var errs []error
	if s.Listen == "" {
		if s.Advertise != "" {
			errs = append(errs, errors.New("advertise is set, but listen is not: nobody would answer there"))
		}
	} else {
		errs = append(errs, s.addresses())
		for _, f := range []struct{ name, value string }{{"certificate", s.Certificate}, {"key", s.Key}, {"ca", s.CA}, {"server_name", s.ServerName}} {
			if f.value == "" {
				errs = append(errs, fmt.Errorf("%s is not set: gateways prove to each other who they are", f.name))
			}
		}
	}
	if s.Heartbeat <= 0 {
		errs = append(errs, fmt.Errorf("heartbeat is %s; want more than 0", s.Heartbeat))
	}
	if s.CallTimeout <= 0 {
		errs = append(errs, fmt.Errorf("call_timeout is %s; want more than 0", s.CallTimeout))
	}
	for _, n := range []struct {
		name         string
		value, least int
	}{{"missed_max", s.MissedMax, 2}, {"queue_max", s.QueueMax, 1}, {"calls_max", s.CallsMax, 1}} {
		if n.value < n.least {
			errs = append(errs, fmt.Errorf("%s is %d; want %d or more", n.name, n.value, n.least))
		}
	}
	return errors.Join(errs...)
}

func (s *Settings) addresses() error {
	if _, _, err := net.SplitHostPort(s.Listen); err != nil {
		return fmt.Errorf("listen is %q; want host:port, such as 0.0.0.0:8884", s.Listen)
	}
	if s.Advertise == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(s.Advertise)
	if err != nil || port == "" || everywhere(host) {
		return fmt.Errorf("advertise is %q; want host:port as the other gateways reach it, such as 10.0.0.7:8884", s.Advertise)
	}
	return nil
}

// everywhere says whether a host means all addresses of a machine: one can listen there, and not be reached there.
func everywhere(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// AdvertiseAt says at which host or IP address others reach this gateway where it listens on all of its machine's, and
// advertise does not say it.
func (s *Settings) AdvertiseAt(host string) {
	if at, port, err := net.SplitHostPort(s.Listen); err == nil && everywhere(at) && s.Advertise == "" && host != "" {
		s.Advertise = net.JoinHostPort(host, port)
	}
}

// Local is this gateway as the others use it.
type Local interface {
	// Deliver hands a message of another gateway to the clients here that have subscribed. It must not wait.
	Deliver(m *peerspb.Message)
	// Evict lets go of a session that another gateway has now: the one of that claim, and not what was claimed after it. It must
	// not wait.
	Evict(user, client string, number uint64)
	// HandOver ends a session's connection and gives its state, for another gateway that is going to claim it.
	HandOver(ctx context.Context, user, client string) (state []byte, found Found, err error)
}

// Commander takes commands that another gateway hands in.
type Commander interface {
	Take(ctx context.Context, command []byte) peerspb.CommandReply_Outcome
}

// Tables are what gateways share here. New tables are given; Peers sets their Changed.
type Tables struct {
	Gateways  *table.Table // start → address and sign of life
	Sessions  *table.Table // user/client/start → claim
	Audiences *table.Table // home/start → topic filters
}

// Peers is the mesh as one gateway sees it. Set the exported fields, call [Peers.Prepare], then [Peers.Run]; the other
// methods may be called from many goroutines after Prepare.
type Peers struct {
	Settings
	Start         string // of this gateway, unique for ever
	StateBytesMax int    // of a session that another gateway hands over
	Tables        Tables
	Local         Local
	Wills         Wills     // nil: its sessions leave nothing behind
	Commands      Commander // nil: it takes none
	Logger        *slog.Logger

	security *security
	address  atomic.Pointer[string]
	beats    atomic.Uint64
	taken    atomic.Bool   // for gone, by others, and it has not claimed its sessions again since
	unsure   atomic.Bool   // it was silent, and has not read since what others wrote
	doubts   chan struct{} // of one place: unsure
	beaten   atomic.Int64  // when a sign of life of this gateway came back last: nanoseconds since 1970
	leaving  atomic.Bool

	mu     sync.Mutex
	others map[string]*other // by start
	moved  chan struct{}     // of one place: others has changed

	audience audience
	claims   claims
	wills    wills
	count    counters
}

// other is another gateway.
type other struct {
	start, address string
	missed         int // signs of life of our own since its last
	gone           bool
	link           *link // nil until it is dialled
}

type counters struct {
	sent, lost, received, commands, failed, evicted, retired, taken, given, unanswered, wills atomic.Int64
	call                                                                                      latency.Meter
}

// Stats are the counters of the mesh.
type Stats struct {
	Others    int // that live
	Connected int // of them, those that are reached now
	Queued    int // messages that wait for them

	Sent, Lost, Received int64             // messages
	Commands, Failed     int64             // handed to others: calls that were answered, and calls that were not
	Call                 latency.Histogram // time of those that were
	Evicted, Retired     int64             // sessions that others took; gateways whose leavings were taken away

	Wills                    int64 // of gateways that are gone, published here
	Taken, Given, Unanswered int64 // sessions handed over from others and to others, and those that were asked for in vain

	Expires time.Time // When the certificate of this gateway ends; zero for one that is alone
}

// beacon is what a gateway says of itself in the table of gateways.
type beacon struct {
	Address string `json:"address"`
	Beat    uint64 `json:"beat"`
}

// Prepare checks the settings and hooks the tables up. The tables are prepared after it.
func (p *Peers) Prepare() error {
	if err := p.Validate(); err != nil {
		return fmt.Errorf("peers: %w", err)
	}
	if host, _, err := net.SplitHostPort(p.Listen); err == nil && p.Advertise == "" && everywhere(host) {
		return fmt.Errorf("peers: listen is %s, every address of this machine, and others need one: set advertise", p.Listen)
	}
	if p.Start == "" || strings.Contains(p.Start, "/") {
		return fmt.Errorf("peers: the name of this start is %q", p.Start)
	}
	if p.Logger == nil {
		p.Logger = slog.New(slog.DiscardHandler)
	}
	p.others, p.moved = map[string]*other{}, make(chan struct{}, 1)
	p.doubts = make(chan struct{}, 1)
	p.audience.prepare()
	p.claims.prepare()
	p.wills.prepare()
	p.Tables.Gateways.Changed = p.gatewayChanged
	p.Tables.Sessions.Changed = p.sessionChanged
	p.Tables.Audiences.Changed = p.audienceChanged
	if p.Listen == "" {
		return nil
	}
	var err error
	p.security, err = newSecurity(&p.Settings)
	return err
}

// Run serves the other gateways, announces this one and reaches the others until ctx ends; then it takes back what it wrote
// into the tables. It is run beside the tables, which must outlive it.
func (p *Peers) Run(ctx context.Context) error {
	work := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
	if p.Listen != "" {
		ln, err := net.Listen("tcp", p.Listen)
		if err != nil {
			return fmt.Errorf("peers.listen: %w", err)
		}
		p.advertise(ln.Addr())
		work.Go(func(ctx context.Context) error { return p.serve(ctx, ln) })
		work.Go(p.reach)
	}
	work.Go(p.announce)
	work.Go(p.keepAudience)
	work.Go(p.keepClaims)
	if p.Wills != nil {
		work.Go(p.keepWills)
	}
	work.Go(p.makeSure)
	work.Go(p.retire)
	err := work.Wait()
	if ctx.Err() != nil {
		err = nil
	}
	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.CallTimeout)
	defer cancel()
	return errors.Join(err, p.leave(leave))
}

func (p *Peers) advertise(at net.Addr) {
	address := p.Advertise
	if host, port, err := net.SplitHostPort(address); address == "" {
		address = at.String()
	} else if tcp, ok := at.(*net.TCPAddr); ok && err == nil && port == "0" { // any free one was asked for
		address = net.JoinHostPort(host, strconv.Itoa(tcp.Port))
	}
	p.address.Store(&address)
}

// Stats gives the counters.
func (p *Peers) Stats() Stats {
	c := &p.count
	s := Stats{Sent: c.sent.Load(), Lost: c.lost.Load(), Received: c.received.Load(), Commands: c.commands.Load(), Failed: c.failed.Load(),
		Call: c.call.Read(), Evicted: c.evicted.Load(), Retired: c.retired.Load(),
		Taken: c.taken.Load(), Given: c.given.Load(), Unanswered: c.unanswered.Load(), Wills: c.wills.Load()}
	if p.security != nil {
		s.Expires = p.security.expires()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.others {
		if o.gone {
			continue
		}
		s.Others++
		if l := o.link; l != nil {
			s.Queued += len(l.queue)
			if l.conn.GetState() == connectivity.Ready {
				s.Connected++
			}
		}
	}
	return s
}

// Live gives the starts of the other gateways that live, as far as is known here.
func (p *Peers) Live() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, o := range p.others {
		if !o.gone {
			out = append(out, o.start)
		}
	}
	return out
}

// announce writes signs of life.
func (p *Peers) announce(ctx context.Context) error {
	tick := time.NewTicker(p.Heartbeat)
	defer tick.Stop()
	for {
		b := beacon{Beat: p.beats.Add(1)}
		if a := p.address.Load(); a != nil {
			b.Address = *a
		}
		if raw, err := json.Marshal(b); err != nil {
			return err
		} else if !p.Tables.Gateways.Offer(p.Start, raw) {
			p.Logger.Warn("peers: no sign of life could be written: the log takes nothing")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// gatewayChanged follows the table of gateways. Time passes with our own signs of life, as they come back out of the
// log: while the log stands still, nobody is gone.
func (p *Peers) gatewayChanged(_, rec table.Record) {
	if rec.Key == p.Start && rec.Value == nil {
		if !p.leaving.Load() {
			p.Logger.Warn("peers: others took this gateway for gone; it says again what it has")
			p.audience.again()
			p.taken.Store(true)
			p.doubt()
		}
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.notify()
	if rec.Key == p.Start {
		p.beatBack()
		for _, o := range p.others {
			if o.missed++; o.missed == p.MissedMax && !o.gone {
				o.gone = true
				p.Logger.Warn("peers: a gateway gives no sign of life", "gateway", o.start)
			}
		}
		return
	}
	if rec.Value == nil {
		if o := p.others[rec.Key]; o != nil {
			o.gone = true
		}
		return
	}
	var b beacon
	if err := json.Unmarshal(rec.Value, &b); err != nil {
		p.Logger.Error("peers: a gateway's sign of life cannot be read", "gateway", rec.Key, "error", err)
		return
	}
	o := p.others[rec.Key]
	if o == nil {
		o = &other{start: rec.Key}
		p.others[rec.Key] = o
	}
	o.missed, o.gone, o.address = 0, false, b.Address
}

func (p *Peers) notify() {
	select {
	case p.moved <- struct{}{}:
	default:
	}
}

// escape makes a name that may hold anything a part of a key.
func escape(name string) string { return url.PathEscape(name) }
