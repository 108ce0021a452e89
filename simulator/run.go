package simulator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
	"github.com/sourcegraph/conc"
)

// journalPatience is how long the journal may fail to be written before the run ends. Hubs go no further than
// the journal has reserved, so nothing can be lost or doubled meanwhile.
const journalPatience = 30 * time.Second

// run is one call of Run.
type run struct {
	s        *Simulator
	tls      *tls.Config
	hubs     []*hub
	count    *counters     // of all parts of one Run
	connects chan struct{} // holds a token for each connection being made
	journal  *journal
	before   tally // rows of the journal when the run began
}

// tally counts rows by the fault of their message.
type tally [faultCount]int64

// Run plays until the work is done (Rounds, RecordedRows), Duration is over or ctx ends. Then it generates
// nothing more, waits up to DrainWait for what is outstanding, and writes the journal. It returns nil when all that was
// sent is acknowledged, [ErrUnacknowledged] when not; other errors are of settings, credentials files and the journal. A
// gateway that is not there, or refuses, is waited for; [Simulator.Stats] tells of it.
func (s *Simulator) Run(ctx context.Context) (err error) {
	if !s.busy.CompareAndSwap(false, true) {
		return errors.New("simulator: it runs already")
	}
	defer s.busy.Store(false)
	if err := s.check(); err != nil {
		return err
	}
	if err := os.MkdirAll(s.JournalDir, 0o700); err != nil {
		return fmt.Errorf("simulator: make journal_dir: %w", err)
	}
	lock := flock.New(filepath.Join(s.JournalDir, "simulator.lock"))
	if ok, err := lock.TryLock(); err != nil {
		return fmt.Errorf("simulator: lock the journal: %w", err)
	} else if !ok {
		return fmt.Errorf("simulator: another simulator uses the journal in %s; give this one a journal_dir of its own", s.JournalDir)
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	if s.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.Duration)
		defer cancel()
	}
	count := &counters{}
	for {
		r, err := s.open(s.wall(), count)
		if err != nil {
			return fmt.Errorf("simulator: %w", err)
		}
		if err := r.note(false); err != nil { // before the first message: what it will be must be known after a crash
			return fmt.Errorf("simulator: %w", err)
		}
		s.last.Store(r)
		if err := r.play(ctx); !errors.Is(err, errSlept) {
			return err
		}
		s.Log.Info("the computer slept; the homes skip what they missed")
	}
}

// errSlept ends a part of a run whose computer slept for longer than Backlog. The next part goes on like a restart.
var errSlept = errors.New("the computer slept")

// open makes ready what a run needs.
func (s *Simulator) open(now time.Time, count *counters) (*run, error) {
	count.finished.Store(0)
	count.outstanding.Store(0)
	r := &run{s: s, count: count, connects: make(chan struct{}, s.ConnectsMax)}
	var err error
	if r.tls, err = s.tls(); err != nil {
		return nil, err
	}
	if r.journal, err = readJournal(s.journalPath()); err != nil {
		return nil, err
	}
	j := r.journal
	if len(j.list) > 0 && j.head.Seed != s.Seed {
		return nil, fmt.Errorf("the journal %s was begun with seed %d, and seed is %d: sequences already stored would get other readings; set the old seed or another journal_dir",
			s.journalPath(), j.head.Seed, s.Seed)
	}
	j.head.Seed = s.Seed
	for f := range r.before {
		r.before[f] = j.head.Rows[Fault(f).String()]
	}
	homes := r.terms(terms{Interval: s.Interval, Rounds: s.Rounds, Faults: s.Faults})
	for i := 1; i <= s.Homes; i++ {
		h := newHome(s.Seed, i)
		p := &plan{name: h.name, dice: h.dice.with(99), home: h, other: HomeName(i%max(s.Homes, 2) + 1)}
		for _, t := range h.kit {
			p.rows = append(p.rows, len(t.metrics))
		}
		r.add(p, i, homes, now)
	}
	if s.Recorded {
		for _, room := range rooms {
			p, err := room.plan(s.Seed)
			if err != nil {
				return nil, err
			}
			r.add(p, 0, r.terms(terms{Rounds: s.RecordedRows, Faults: s.Faults}), now)
		}
	}
	return r, nil
}

// terms finds t in the journal, or adds it.
func (r *run) terms(t terms) *terms {
	for _, old := range r.journal.head.Terms {
		if *old == t {
			return old
		}
	}
	r.journal.head.Terms = append(r.journal.head.Terms, &t)
	return &t
}

// add makes the hub of a plan, going on from its line in the journal.
func (r *run) add(p *plan, number int, t *terms, now time.Time) {
	m := r.journal.hubs[p.name]
	if m == nil {
		m = &hubMark{stretches: []stretch{{0, r.begin(p, now), t}}}
		r.journal.hubs[p.name] = m
		r.journal.list = append(r.journal.list, p.name)
	}
	p.stretches = m.stretches
	r.resume(p, m, t, now)
	m.stretches = p.stretches
	r.hubs = append(r.hubs, newHub(r, p, number, m))
}

// begin is the event time of a new hub's first round: µs.
func (r *run) begin(p *plan, now time.Time) int64 {
	switch {
	case p.recording == nil:
		return now.Add(-r.s.History).UnixMicro()
	case r.s.Speed > 0 && r.s.Speed <= 1:
		return now.UnixMicro()
	}
	return now.Add(-p.recording.length()).UnixMicro() // it ends now, so no reading can come before it happened
}

// resume adds a stretch where settings have changed or too much was missed. It begins after all that can have been
// sent, at an even round, so that no pair of rounds that may change places is cut.
func (r *run) resume(p *plan, m *hubMark, t *terms, now time.Time) {
	last := p.stretches[len(p.stretches)-1]
	from := (max(m.reserved, m.acknowledged/p.devices()) + 1) &^ 1
	start := last.start
	missed := false
	if p.recording == nil {
		due := p.time(0, m.acknowledged/p.devices())
		missed = r.s.Backlog > 0 && now.UnixMicro()-due > (r.s.Backlog+r.s.History).Microseconds()
		start = last.start + (from-last.from)*last.terms.Interval.Microseconds()
		if missed || *last.terms != *t {
			start = max(start, now.UnixMicro())
		}
	}
	if !missed && *last.terms == *t {
		return
	}
	if from == 0 {
		from, start = 0, r.begin(p, now)
	}
	for n := len(p.stretches); n > 0 && p.stretches[n-1].from >= from; n-- {
		p.stretches = p.stretches[:n-1] // never reached
	}
	p.stretches = append(p.stretches, stretch{from, start, t})
	if n := len(p.stretches) - stretchesMax; n > 0 {
		p.stretches = p.stretches[n:]
	}
}

// play runs the hubs, and writes the journal until they are done.
func (r *run) play(ctx context.Context) error {
	stop, cancelStop := context.WithCancel(ctx)
	defer cancelStop()
	hard, cancelHard := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelHard()
	defer context.AfterFunc(stop, func() { time.AfterFunc(r.s.DrainWait, cancelHard) })()

	var hubs, waiter conc.WaitGroup
	for _, h := range r.hubs {
		hubs.Go(func() { h.run(stop, hard) })
	}
	done := make(chan struct{})
	waiter.Go(func() {
		defer close(done)
		hubs.Wait()
	})
	slept, err := r.keepJournal(done)
	if err != nil {
		cancelStop()
		cancelHard()
	}
	if slept {
		cancelStop()
		_, err = r.keepJournal(done)
	}
	waiter.Wait()
	if err != nil {
		return fmt.Errorf("simulator: %w; free some space, or set another journal_dir", err)
	}
	if slept && ctx.Err() == nil {
		return errSlept // what is outstanding is sent again by the next part
	}
	left := 0
	for _, h := range r.hubs {
		if !h.finished(true) {
			left++
		}
	}
	if left > 0 {
		return fmt.Errorf("simulator: %w: %d messages of %d homes; run it again with the same journal", ErrUnacknowledged, r.count.outstanding.Load(), left)
	}
	return nil
}

// keepJournal writes the journal every JournalEvery, and once when done is closed. It returns early when the
// computer has slept.
func (r *run) keepJournal(done <-chan struct{}) (slept bool, err error) {
	tick := time.NewTicker(r.s.JournalEvery)
	defer tick.Stop()
	var failing time.Time
	before := r.s.wall()
	for {
		select {
		case <-tick.C:
			now := r.s.wall()
			if r.s.Backlog > 0 && now.Sub(before) > r.s.Backlog {
				return true, nil
			}
			before = now
			err := r.note(false)
			switch {
			case err == nil:
				failing = time.Time{}
			case failing.IsZero():
				failing = time.Now()
				r.s.Log.Warn("the simulator's journal cannot be written; homes wait for it", "error", err)
			case time.Since(failing) > journalPatience:
				return false, err
			}
		case <-done:
			return false, r.note(true)
		}
	}
}

// note writes the journal where anything has changed, then lets the hubs go as far as it reserves. final says that no hub
// will send any more.
func (r *run) note(final bool) error {
	rows := r.before
	changed := r.journal.head.Rows == nil || len(r.hubs) == 0
	for _, h := range r.hubs {
		changed = h.mark(r.journal.hubs[h.plan.name], &rows, final) || changed
	}
	if !changed {
		return nil
	}
	r.journal.head.Rows = make(map[string]int64)
	for f, n := range rows {
		if n != 0 {
			r.journal.head.Rows[Fault(f).String()] = n
		}
	}
	if err := r.journal.write(r.s.journalPath()); err != nil {
		r.journal.head.Rows = nil // not written: all of it counts as changed
		return err
	}
	for _, h := range r.hubs {
		h.reserved.Store(r.journal.hubs[h.plan.name].reserved)
	}
	return nil
}

// rows counts the rows acknowledged over all runs.
func (r *run) rows() tally {
	rows := r.before
	for _, h := range r.hubs {
		h.mu.Lock()
		for f, n := range h.rows {
			rows[f] += n
		}
		h.mu.Unlock()
	}
	return rows
}
