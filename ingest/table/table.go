// Package table is what gateways share: a map that stands in a compacted, partitioned stream of the log, and that each of
// them holds in memory. The order of the log is the order of events, so all come to the same map without asking each
// other (decision 24).
//
// A key begins with the name it is partitioned by, a home's as a rule, and perhaps goes on behind a slash:
// home/device/id. What belongs to one home stands in one partition, in one order.
//
// # Rules and compaction
//
// Without a [Rule] the last record of a key stands. With one, a record that the rule refuses has no effect on what the
// key holds. Compaction knows nothing of rules: it keeps the last record of a key, and would bring the refused one
// back. So a table that sees its key end in a refused record writes the standing one behind it again, after a short wait
// in which one of the others may do so. This needs a rule that always comes to the same end: it takes a record only if that is
// above the standing one in an order that looks at nothing but the two, and takes any where there is none. Where two records
// can be equal in that order and the first shall stand, what is written again must be above both: that is [Table.Raise].
package table

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc/pool"

	"hearthline/flow"
)

// Record is what a key holds. Its value belongs to the table and is not changed.
type Record struct {
	Key    string
	Value  []byte // nil: the key holds nothing
	Offset int64  // where it stands in its partition
}

// Rule says whether a record takes effect; old.Value is nil where the key holds nothing, new.Value where the record takes
// the key back.
type Rule func(old, new Record) bool

// Read is what came of a partition of the log at once.
type Read struct {
	Records []Record
	Next    int64 // the offset that is read next
	End     int64 // the offset behind the last record in the log
	Whole   bool  // nothing more stood in the log
}

// Log is a compacted stream.
type Log interface {
	// Append makes records durable (acks=all) in a partition, in order, and returns the offset of the first. It may be
	// called for several partitions at once.
	Append(ctx context.Context, partition int32, records []Record) (int64, error)
	// Follow reads a partition from its first record on and then what is appended, in order, until ctx ends.
	Follow(ctx context.Context, partition int32, take func(Read) error) error
}

// Table is its own configuration; New gives the defaults. The fields without a yaml name are set before Run.
type Table struct {
	Linger     time.Duration `yaml:"linger"`      // how long the first record of an append waits for others
	AppendMax  int           `yaml:"append_max"`  // records of one append
	QueueMax   int           `yaml:"queue_max"`   // records of one partition that wait for an append; then Put waits
	BytesMax   int           `yaml:"bytes_max"`   // of keys and values held, with what holding them takes; beyond it no new key is put
	RecordMax  int           `yaml:"record_max"`  // bytes of a key and its value
	WatchMax   int           `yaml:"watch_max"`   // changes that wait for one watcher; then it has lost
	RepairWait time.Duration `yaml:"repair_wait"` // before a refused record is written over, up to twice as long

	Name       string                `yaml:"-"` // for errors and the log
	Log        Log                   `yaml:"-"`
	Partitions int                   `yaml:"-"`
	Rule       Rule                  `yaml:"-"` // nil: the last record stands
	Raise      func([]byte) []byte   `yaml:"-"` // makes of what stands the same, but above whatever the rule has refused for it; nil: it is above by itself
	Changed    func(old, new Record) `yaml:"-"` // called for each change, in the order of the partition, on the goroutine that follows it: it must not wait; may be nil
	Logger     *slog.Logger          `yaml:"-"`

	parts    []*part
	whole    chan struct{} // closed when every partition has been read to its end once
	missing  atomic.Int32
	watchMu  sync.Mutex
	watchers map[string]map[*Watcher]struct{} // by group, where their prefix names one whole; else under ""
	bytes    atomic.Int64
	warned   atomic.Int64
	count    counters
}

type counters struct{ puts, appends, failed, changes, refused, repairs, lost atomic.Int64 }

// Stats are a table's counters.
type Stats struct {
	Keys, Bytes, BytesMax                          int64
	Puts, Appends, Changes, Refused, Repairs, Lost int64
	Failed                                         int64         // appends that the log did not take
	Lag                                            int64         // records that stand in the log and are not read yet, as far as it is known
	Silence                                        time.Duration // since the log last answered, of the partition for which that is longest
}

// part is one partition.
type part struct {
	number int32
	queue  chan *put

	mu      sync.RWMutex
	groups  map[string]map[string]entry // by the part of the key before its first slash
	keys    int64
	next    int64
	end     int64         // of the log, when it last answered
	heard   time.Time     // and when that was
	arrived chan struct{} // closed when next moves; nil unless somebody waits
	whole   bool
	doubts  map[string]time.Time // keys that end in a refused record: when to write what stands again
}

type entry struct {
	value  []byte
	offset int64
}

// put is a record on its way into the log.
type put struct {
	record Record
	done   chan error // of one place
}

// Errors of Put.
var (
	ErrFull    = errors.New("the table holds as much as it may")
	ErrTooLong = errors.New("the record is too long for the table")
)

// New gives a table with the default settings.
func New() *Table {
	return &Table{
		Linger: time.Millisecond, AppendMax: 1000, QueueMax: 10_000, BytesMax: 512 << 20, RecordMax: 512 << 10, WatchMax: 1024,
		RepairWait: 2 * time.Second,
	}
}

// Prepare makes what the methods need; it comes before Run and before whatever else uses the table.
func (t *Table) Prepare() error {
	switch {
	case t.Log == nil || t.Partitions < 1 || t.Name == "":
		return errors.New("table: no log, no partitions or no name")
	case t.AppendMax < 1 || t.QueueMax < 1 || t.BytesMax < 1 || t.RecordMax < 1 || t.WatchMax < 1:
		return fmt.Errorf("table %s: append_max, queue_max, bytes_max, record_max and watch_max must be above 0", t.Name)
	case t.Linger < 0 || t.RepairWait <= 0:
		return fmt.Errorf("table %s: linger is %s and repair_wait %s", t.Name, t.Linger, t.RepairWait)
	}
	if t.Logger == nil {
		t.Logger = slog.New(slog.DiscardHandler)
	}
	t.whole = make(chan struct{})
	t.watchers = map[string]map[*Watcher]struct{}{}
	t.missing.Store(int32(t.Partitions)) // #nosec G115 -- checked by the plan
	for i := range t.Partitions {
		t.parts = append(t.parts, &part{
			number: int32(i), queue: make(chan *put, t.QueueMax), // #nosec G115 -- likewise
			groups: map[string]map[string]entry{}, doubts: map[string]time.Time{}, heard: time.Now(),
		})
	}
	return nil
}

// Run follows the log and appends to it until ctx ends, or the log fails for good. What was put and not answered by then
// may or may not stand in the log.
func (t *Table) Run(ctx context.Context) error {
	work := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
	for _, p := range t.parts {
		work.Go(func(ctx context.Context) error {
			err := t.Log.Follow(ctx, p.number, func(r Read) error { t.take(p, r); return nil })
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("table %s: %w", t.Name, err)
			}
			return nil
		})
		work.Go(func(ctx context.Context) error { t.write(ctx, p); return nil })
		if t.Rule != nil {
			work.Go(func(ctx context.Context) error { t.repair(ctx, p); return nil })
		}
	}
	return work.Wait()
}

// Stats gives the counters. It may be called at any time after Prepare.
func (t *Table) Stats() Stats {
	s := Stats{Bytes: t.bytes.Load(), BytesMax: int64(t.BytesMax), Puts: t.count.puts.Load(), Appends: t.count.appends.Load(), Changes: t.count.changes.Load(),
		Refused: t.count.refused.Load(), Repairs: t.count.repairs.Load(), Lost: t.count.lost.Load(), Failed: t.count.failed.Load()}
	now := time.Now()
	for _, p := range t.parts {
		p.mu.RLock()
		s.Keys += p.keys
		s.Lag += max(p.end-p.next, 0)
		s.Silence = max(s.Silence, now.Sub(p.heard))
		p.mu.RUnlock()
	}
	return s
}

// CaughtUp is closed when all that stood in the log at some moment after the start is in the table.
func (t *Table) CaughtUp() <-chan struct{} { return t.whole }

// group is what a key is partitioned by.
func group(key string) string {
	g, _, _ := strings.Cut(key, "/")
	return g
}

func (t *Table) part(group string) *part { return t.parts[flow.PartitionOf(group, t.Partitions)] }

// Get gives what a key holds.
func (t *Table) Get(key string) (Record, bool) {
	g := group(key)
	p := t.part(g)
	p.mu.RLock()
	defer p.mu.RUnlock()
	e, ok := p.groups[g][key]
	return Record{Key: key, Value: e.value, Offset: e.offset}, ok
}

// Scan gives what the keys with a prefix hold, sorted by key. A prefix with a slash looks at one group only.
func (t *Table) Scan(prefix string) []Record {
	var out []Record
	add := func(held map[string]entry) {
		for key, e := range held {
			if strings.HasPrefix(key, prefix) {
				out = append(out, Record{Key: key, Value: e.value, Offset: e.offset})
			}
		}
	}
	if strings.Contains(prefix, "/") {
		g := group(prefix)
		p := t.part(g)
		p.mu.RLock()
		add(p.groups[g])
		p.mu.RUnlock()
	} else {
		for _, p := range t.parts {
			p.mu.RLock()
			for _, held := range p.groups {
				add(held)
			}
			p.mu.RUnlock()
		}
	}
	slices.SortFunc(out, func(a, b Record) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// entryBytes is about what holding a record takes beside its bytes: its share of a map, headers, the allocator.
const entryBytes = 128

// take applies what the log gave.
func (t *Table) take(p *part, r Read) {
	for _, rec := range r.Records {
		t.apply(p, rec)
	}
	p.mu.Lock()
	if r.Next != p.next && p.arrived != nil {
		close(p.arrived)
		p.arrived = nil
	}
	p.next, p.end, p.heard = r.Next, r.End, time.Now()
	first := r.Whole && !p.whole
	p.whole = p.whole || r.Whole
	p.mu.Unlock()
	if first && t.missing.Add(-1) == 0 {
		close(t.whole)
	}
}

func (t *Table) apply(p *part, rec Record) {
	g := group(rec.Key)
	p.mu.Lock()
	e, held := p.groups[g][rec.Key]
	old := Record{Key: rec.Key, Value: e.value, Offset: e.offset}
	switch {
	case !held && rec.Value == nil:
		delete(p.doubts, rec.Key)
		p.mu.Unlock()
		return
	case held && rec.Value != nil && bytes.Equal(old.Value, rec.Value):
		// Written again, to stand behind what was refused. No event; a rule has nothing to say.
		delete(p.doubts, rec.Key)
		if t.Rule == nil {
			p.groups[g][rec.Key] = entry{value: e.value, offset: rec.Offset}
		}
		p.mu.Unlock()
		return
	case t.Rule != nil && !t.Rule(old, rec):
		t.count.refused.Add(1)
		if _, doubted := p.doubts[rec.Key]; !doubted {
			p.doubts[rec.Key] = time.Now().Add(t.RepairWait + jitter(t.RepairWait))
		}
		p.mu.Unlock()
		return
	}
	delete(p.doubts, rec.Key)
	t.hold(p, g, rec, held, len(old.Value))
	p.mu.Unlock()
	t.count.changes.Add(1)
	if t.Changed != nil {
		t.Changed(old, rec)
	}
	t.tell(Change{Old: old, New: rec})
}

// hold puts a record into the map. Callers hold p.mu.
func (t *Table) hold(p *part, g string, rec Record, held bool, oldBytes int) {
	if rec.Value == nil {
		delete(p.groups[g], rec.Key)
		if len(p.groups[g]) == 0 {
			delete(p.groups, g)
		}
		p.keys--
		t.bytes.Add(-int64(entryBytes + len(rec.Key) + oldBytes))
		return
	}
	if p.groups[g] == nil {
		p.groups[g] = map[string]entry{}
	}
	p.groups[g][rec.Key] = entry{value: rec.Value, offset: rec.Offset}
	more := len(rec.Value) - oldBytes
	if !held {
		p.keys++
		more += entryBytes + len(rec.Key)
	}
	if now := t.bytes.Add(int64(more)); now > int64(t.BytesMax) && more > 0 {
		t.warnFull(now)
	}
}

const warnEvery = 30 * time.Second

// warnFull says that what others have put is more than this process was to hold. It is held nevertheless: a map with holes
// would be worse.
func (t *Table) warnFull(held int64) {
	now, last := time.Now().UnixNano(), t.warned.Load()
	if now-last > int64(warnEvery) && t.warned.CompareAndSwap(last, now) {
		t.Logger.Error("table: more is held than bytes_max; no new keys are put until there is less, or the setting is raised",
			"table", t.Name, "bytes", held, "bytes_max", t.BytesMax)
	}
}
