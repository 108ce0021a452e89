// Package live is an app's view of a home, as it happens: one stream of Server-Sent Events that begins with what stands, the shadows
// of its devices and the commands under way, and then tells each change of them.
package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hearthline/ingest/api"
	"hearthline/ingest/identity"
	"hearthline/ingest/table"
)

// Settings are those of live streams.
type Settings struct {
	StreamsMax     int `yaml:"streams_max"`      // live streams of this gateway
	UserStreamsMax int `yaml:"user_streams_max"` // likewise, of one user
}

// Defaults gives the default settings.
func Defaults() Settings { return Settings{StreamsMax: 10_000, UserStreamsMax: 16} }

// Validate says what is wrong with the settings by themselves.
func (s *Settings) Validate() error {
	var errs []error
	for _, n := range []struct {
		name  string
		value int
	}{{"streams_max", s.StreamsMax}, {"user_streams_max", s.UserStreamsMax}} {
		if n.value < 1 || n.value > 1<<24 {
			errs = append(errs, fmt.Errorf("%s is %d; want 1 to %d", n.name, n.value, 1<<24))
		}
	}
	return errors.Join(errs...)
}

// Source is one kind of what is streamed. The keys of its table begin with the home.
type Source struct {
	Name  string // of its events; its plural, with an s, is a member of the snapshot
	Table *table.Table
	// Standing gives what there is of a home, of the devices that may says yes of: what the snapshot has.
	Standing func(home string, may func(device string) bool) (any, error)
	// Event gives what a record is told as, and of which device; nil when it is not.
	Event func(table.Record) (device string, event any)
}

// Live are the live streams of one gateway. Set the exported fields before its first use.
type Live struct {
	Settings
	Sources [2]Source
	Resume  time.Duration   // how long after its last event a stream may go on; sources keep what is gone for longer
	Stop    <-chan struct{} // closed when streams are to end

	mu    sync.Mutex
	users map[string]int // streams, by subject
	count struct {
		open                        atomic.Int64
		resumed, events, slow, late atomic.Int64
	}
}

// Stats are the counters.
type Stats struct {
	Open    int64 // streams, now
	Resumed int64 // that went on where another one ended
	Events  int64 // sent
	Slow    int64 // streams that were ended: their reader took nothing for ten seconds
	Late    int64 // times a reader was too slow for single changes, and was told what stood instead
}

// Stats gives the counters.
func (l *Live) Stats() Stats {
	n := &l.count
	return Stats{Open: n.open.Load(), Resumed: n.resumed.Load(), Events: n.events.Load(), Slow: n.slow.Load(), Late: n.late.Load()}
}

// Routes adds the API to a door.
func (l *Live) Routes(mux *http.ServeMux, who api.Authenticate) {
	api.Route(mux, "GET /v1/homes/{home}/live", who, l.serve, func(err error) *api.Problem {
		var p *api.Problem
		if !errors.As(err, &p) {
			p = api.Later(http.StatusServiceUnavailable, "unavailable", "the stream cannot begin now")
		}
		return p
	})
}

func (l *Live) serve(w http.ResponseWriter, r *http.Request, id *identity.Identity) error {
	home := r.PathValue("home")
	if err := api.May(id.MaySee(home, "")); err != nil {
		return err
	}
	if !l.enter(id.Subject) {
		return api.Later(http.StatusServiceUnavailable, "unavailable", "too many live streams are open here, or of this user")
	}
	defer l.leave(id.Subject)
	to, err := api.OpenEvents(w, id)
	if err != nil {
		return err
	}
	s := &stream{l: l, to: to, id: id, home: home, fresh: true}
	s.fresh = !s.resume(r.Header.Get("Last-Event-ID"), time.Now())
	err = s.run(r.Context())
	if why := s.why(err); why != "" {
		said, _ := json.Marshal(map[string]string{"reason": why}) // a map of texts
		to.End(said)
	}
	return nil
}

func (l *Live) enter(subject string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users == nil {
		l.users = map[string]int{}
	}
	if l.count.open.Load() >= int64(l.StreamsMax) || l.users[subject] >= l.UserStreamsMax {
		return false
	}
	l.count.open.Add(1)
	l.users[subject]++
	return true
}

func (l *Live) leave(subject string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count.open.Add(-1)
	if l.users[subject]--; l.users[subject] == 0 {
		delete(l.users, subject)
	}
}

// stream is one live stream.
type stream struct {
	l     *Live
	to    *api.Events
	id    *identity.Identity
	home  string
	since [2]int64 // the offsets up to which it has been told, of each source
	fresh bool     // it is to be told everything
}

var errStopped = errors.New("the gateway is going down; come back at once, to another")

// why is what a reader is told about the end of its stream; "" where there is nobody to tell.
func (s *stream) why(err error) string {
	if gone := s.id.Gone(time.Now()); gone != nil {
		return gone.Error()
	}
	if errors.Is(err, errStopped) {
		return err.Error()
	}
	if errors.Is(err, api.ErrSlow) {
		s.l.count.slow.Add(1)
	}
	return ""
}

// An event's id holds the offsets of both sources, and when it was sent. mark writes it.
func (s *stream) mark() string {
	return fmt.Sprintf("%d-%d-%d", s.since[0], s.since[1], time.Now().Unix())
}

// resume goes on behind an event of another stream. It says false where what happened since cannot be told for sure: what was
// deleted, or has ended, long ago is not in the tables any more.
func (s *stream) resume(id string, now time.Time) bool {
	parts := strings.Split(id, "-")
	if len(parts) != 3 {
		return false
	}
	var n [3]int64
	for i, part := range parts {
		var err error
		if n[i], err = strconv.ParseInt(part, 10, 64); err != nil {
			return false
		}
	}
	if age := now.Sub(time.Unix(n[2], 0)); age > s.l.Resume || age < -s.l.Resume {
		return false
	}
	for i := range s.since {
		if n[i] > s.last(i) { // of another log, of a gateway that has read further, or what it spoke of is gone
			return false
		}
		s.since[i] = n[i]
	}
	s.l.count.resumed.Add(1)
	return true
}

// last is the offset of the newest record of the home; -1 where there is none.
func (s *stream) last(i int) int64 {
	last := int64(-1)
	for _, rec := range s.l.Sources[i].Table.Scan(s.home + "/") {
		last = max(last, rec.Offset)
	}
	return last
}

// retryMax spreads readers that lost a gateway together.
const retryMax = 5 * time.Second

func (s *stream) run(ctx context.Context) error {
	retry := rand.N(retryMax) // #nosec G404 -- a wait, not a secret
	if err := s.to.Retry(time.Second + retry); err != nil {
		return err
	}
	for {
		var watches [2]*table.Watcher
		for i := range watches {
			watches[i] = s.l.Sources[i].Table.Watch(s.home + "/")
		}
		err := s.begin()
		if err == nil {
			err = s.follow(ctx, watches[0].C, watches[1].C)
		}
		for _, w := range watches {
			w.Close()
		}
		if err != nil {
			return err
		}
		s.l.count.late.Add(1)
	}
}

func (s *stream) may(device string) bool { return s.id.MaySee(s.home, device) == nil }

// begin tells what stands, or what has changed since.
func (s *stream) begin() error {
	if s.fresh {
		s.fresh = false
		return s.snapshot()
	}
	for i := range s.l.Sources {
		standing := s.l.Sources[i].Table.Scan(s.home + "/")
		slices.SortFunc(standing, func(a, b table.Record) int { return int(a.Offset - b.Offset) })
		for _, rec := range standing {
			if err := s.tell(i, rec); err != nil {
				return err
			}
		}
	}
	return s.to.Comment("following")
}

func (s *stream) snapshot() error {
	all := map[string]any{"home": s.home}
	for i, source := range s.l.Sources {
		s.since[i] = s.last(i) // what comes in between is told again
		standing, err := source.Standing(s.home, s.may)
		if err != nil {
			return err
		}
		all[source.Name+"s"] = standing
	}
	return s.send("snapshot", all)
}

// follow tells what changes; nil when the reader was too slow for it.
func (s *stream) follow(ctx context.Context, one, two <-chan table.Change) error {
	alive := time.NewTicker(api.AliveEvery)
	defer alive.Stop()
	for {
		var source int
		var change table.Change
		ok := true
		select {
		case change, ok = <-one:
		case change, ok = <-two:
			source = 1
		case <-alive.C:
			if err := s.to.Comment("alive"); err != nil {
				return err
			}
			continue
		case <-s.l.Stop:
			return errStopped
		case <-ctx.Done():
			return ctx.Err()
		}
		if !ok {
			return nil
		}
		if err := s.tell(source, change.New); err != nil {
			return err
		}
	}
}

// tell sends what a record says, unless the reader has been told, or may not see it.
func (s *stream) tell(source int, rec table.Record) error {
	if rec.Value == nil || rec.Offset <= s.since[source] {
		return nil
	}
	s.since[source] = rec.Offset
	device, event := s.l.Sources[source].Event(rec)
	if event == nil || !s.may(device) {
		return nil
	}
	return s.send(s.l.Sources[source].Name, event)
}

func (s *stream) send(name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	s.l.count.events.Add(1)
	return s.to.Send(name, s.mark(), raw)
}
