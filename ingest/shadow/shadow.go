// Package shadow keeps what is wanted of each device and what it was last said to be: the device shadow, or device twin, of other
// platforms. Apps change the desired state by JSON merge patches (RFC 7396), hubs the reported one; what differs, the delta,
// goes to the hub at once, and whenever it comes back.
//
// Both halves stand in a table that all gateways follow (decision 24), each under a key of its own, so that what a chatty device
// reports never stands in the way of who wants something of it. Many may change a half at once, on many gateways: each record
// is made of the one before it, and of two that were made of the same one the first in the log stands; whoever wrote the
// other makes it anew (decision 29).
//
// Nothing is remembered of what was sent: the delta is computed from what stands. So it cannot be lost with a gateway, and every
// gateway tells the hubs and apps that it has by itself, in the order of the log.
package shadow

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/ingest/latency"
	"hearthline/ingest/table"
)

// Settings are those of shadows.
type Settings struct {
	DocumentMax      int           `yaml:"document_max"`       // bytes of JSON that each half of a shadow, desired and reported, may have
	DepthMax         int           `yaml:"depth_max"`          // objects and arrays within each other, of each
	PropertiesMax    int           `yaml:"properties_max"`     // members of all its objects, of each
	DevicesMax       int           `yaml:"devices_max"`        // shadows of one home
	HomeBytesMax     int           `yaml:"home_bytes_max"`     // of them all, with what the table keeps beside them
	PendingMax       int           `yaml:"pending_max"`        // changes of this gateway that are being written; more wait where they come from
	DevicePendingMax int           `yaml:"device_pending_max"` // likewise, of one device
	WriteTimeout     time.Duration `yaml:"write_timeout"`      // until a change that the log does not take is given up
	Keep             time.Duration `yaml:"keep"`               // how long the versions of a deleted shadow go on
}

// Defaults gives the default settings.
func Defaults() Settings {
	return Settings{DocumentMax: 8 << 10, DepthMax: 8, PropertiesMax: 256, DevicesMax: 512, HomeBytesMax: 1 << 20, PendingMax: 4096, DevicePendingMax: 64,
		WriteTimeout: 10 * time.Second, Keep: time.Hour}
}

// Validate says what is wrong with the settings by themselves.
func (s *Settings) Validate() error {
	var errs []error
	for _, n := range []struct {
		name       string
		value, max int
	}{{"document_max", s.DocumentMax, 128 << 10}, {"depth_max", s.DepthMax, depthHeldMax}, {"properties_max", s.PropertiesMax, 10_000}, {"devices_max", s.DevicesMax, 1 << 20}, {"home_bytes_max", s.HomeBytesMax, 1 << 30},
		{"pending_max", s.PendingMax, 1 << 24}, {"device_pending_max", s.DevicePendingMax, 1 << 24}} {
		if n.value < 1 || n.value > n.max {
			errs = append(errs, fmt.Errorf("%s is %d; want 1 to %d", n.name, n.value, n.max))
		}
	}
	for name, d := range map[string]time.Duration{"write_timeout": s.WriteTimeout, "keep": s.Keep} {
		if d < time.Millisecond {
			errs = append(errs, fmt.Errorf("%s is %s; want 1ms or more", name, d))
		}
	}
	return errors.Join(errs...)
}

// Clients are those of this gateway.
type Clients interface {
	// Listening says whether one of them has subscribed to a topic.
	Listening(home, topic string) bool
	// Publish gives a document to all that have subscribed to its topic. It does not wait.
	Publish(home, topic string, payload []byte)
	// Hand gives a delta to the hubs of a device that have subscribed. It does not wait, and says to how many it is on
	// its way, and for how many there was no room. acked is called when one of them has acknowledged it.
	Hand(home, device, topic string, payload []byte, acked func()) (sent, noRoom int)
}

// Change is what a user did to the desired state, once it stands.
type Change struct {
	Home, Device, By string
	Version          int64
	Patch            []byte // JSON; nil of a shadow that was deleted
	At               time.Time
}

// Shadows of one gateway. Set the exported fields, call Prepare, prepare and run the table, then Run.
type Shadows struct {
	Settings
	Table   *table.Table // Shadows sets its Rule, Raise and Changed
	Clients Clients
	Gateway string       // this gateway's start
	Audit   func(Change) // is told what users wanted, once it stands; may be nil
	Now     func() time.Time
	Logger  *slog.Logger

	work    conc.WaitGroup
	writing atomic.Int64 // names this gateway's attempts
	seed    maphash.Seed
	telling [64]sync.Mutex // by home: what is told of it comes in the order of the table

	mu      sync.Mutex
	queues  map[string]*queue // by home/device: changes that wait or are being written
	pending int
	wrote   map[string]bool      // attempts under way, and whether they took effect
	owed    map[string]bool      // devices here whose hub had no room for its delta, by home/device
	deleted map[string]time.Time // keys that may be forgotten, and when

	count counters
}

type counters struct {
	desired, reported, unchanged, refused, conflicts, deltas, acked, owed atomic.Int64
	write                                                                 latency.Meter
}

// Stats are the counters of one gateway.
type Stats struct {
	Desired, Reported int64             // changes that it wrote
	Unchanged         int64             // asked for what was so already
	Refused           int64             // invalid, over a limit, or of another version than was asked for
	Conflicts         int64             // attempts that were made anew, because another gateway was first
	Deltas, Acked     int64             // sent to hubs here, and acknowledged by them
	Owed              int64             // times a hub had no room for its delta
	Pending           int64             // changes that are being written, now
	Write             latency.Histogram // from when a change was taken on its way until it stood, or had failed
}

// Stats gives the counters.
func (s *Shadows) Stats() Stats {
	n := &s.count
	out := Stats{Desired: n.desired.Load(), Reported: n.reported.Load(), Unchanged: n.unchanged.Load(), Refused: n.refused.Load(),
		Conflicts: n.conflicts.Load(), Deltas: n.deltas.Load(), Acked: n.acked.Load(), Owed: n.owed.Load(), Write: n.write.Read()}
	s.mu.Lock()
	defer s.mu.Unlock()
	out.Pending = int64(s.pending)
	return out
}

// Prepare checks the settings and hooks the table up. The table is prepared after it.
func (s *Shadows) Prepare() error {
	if err := s.Validate(); err != nil {
		return fmt.Errorf("shadow: %w", err)
	}
	if s.Table == nil || s.Clients == nil || s.Gateway == "" {
		return errors.New("shadow: no table, clients or gateway")
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	s.seed = maphash.MakeSeed()
	s.queues, s.wrote, s.owed, s.deleted = map[string]*queue{}, map[string]bool{}, map[string]bool{}, map[string]time.Time{}
	s.Table.Rule, s.Table.Raise, s.Table.Changed = Rule, Raise, s.changed
	return nil
}

// tick is how often Run looks at what is owed and at what may be forgotten.
const tick = time.Second

// Run sends again what hubs had no room for, and forgets what was deleted, until ctx ends; then it waits for what is being
// written.
func (s *Shadows) Run(ctx context.Context) error {
	defer s.work.Wait()
	every := time.NewTicker(tick)
	defer every.Stop()
	for {
		select {
		case <-every.C:
		case <-ctx.Done():
			return nil
		}
		s.settle()
		s.forget()
	}
}

// Get gives a device's shadow; false where there is none.
func (s *Shadows) Get(home, device string) (*Document, bool, error) {
	p := s.get(home, device)
	if !p.there() {
		return nil, false, nil
	}
	d, err := p.document(home, device)
	return d, err == nil, err
}

// List gives the shadows of a home, in the order of the devices' names, of the devices that may says yes of.
func (s *Shadows) List(home string, may func(device string) bool) ([]*Document, error) {
	out, last := []*Document{}, ""
	for _, rec := range s.Table.Scan(home + "/") {
		_, device, _, ok := splitKey(rec.Key)
		if !ok || device == last || !may(device) {
			continue
		}
		last = device
		d, ok, err := s.Get(home, device)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, d)
		}
	}
	return out, nil
}

// Event gives what a record of the table is told as in a live stream: the whole document; nil when it cannot be read.
func (s *Shadows) Event(rec table.Record) (device string, event any) {
	home, device, _, ok := splitKey(rec.Key)
	if !ok {
		return "", nil
	}
	d, err := s.get(home, device).document(home, device)
	if err != nil {
		s.Logger.Error("shadow: a document cannot be made", "key", rec.Key, "error", err)
		return "", nil
	}
	return device, d
}
