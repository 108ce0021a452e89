package table

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// Place is where a record stands.
type Place struct {
	Partition int32
	Offset    int64
}

// Put writes what a key shall hold, and returns where it stands when that is durable; nil takes the key back. What the
// key then holds, this and other processes know when they have read as far ([Table.Reached]); a rule may refuse it. It
// waits for room in the queue and for the log as long as ctx does; given up, the record may yet come to stand there. An
// error that Is [ErrFull] asks for fewer keys, or for a larger bytes_max.
func (t *Table) Put(ctx context.Context, key string, value []byte) (Place, error) {
	w, err := t.Begin(ctx, key, value)
	if err != nil {
		return Place{}, err
	}
	return w.Wait(ctx)
}

// Putting is a record on its way into the log.
type Putting struct {
	t    *Table
	part *part
	put  *put
}

// Begin is the first half of [Table.Put]: the record has its turn, before all that this process puts later into the same
// partition. Wait is the other half.
func (t *Table) Begin(ctx context.Context, key string, value []byte) (*Putting, error) {
	g := group(key)
	p := t.part(g)
	if n := len(key) + len(value); n > t.RecordMax || g == "" {
		return nil, fmt.Errorf("put into table %s: %d bytes, at most %d: %w", t.Name, n, t.RecordMax, ErrTooLong)
	}
	if value != nil && t.bytes.Load() > int64(t.BytesMax) {
		if _, held := t.Get(key); !held {
			return nil, fmt.Errorf("put into table %s: %w: %d bytes; bytes_max is %d", t.Name, ErrFull, t.bytes.Load(), t.BytesMax)
		}
	}
	t.count.puts.Add(1)
	w := &put{record: Record{Key: key, Value: value}, done: make(chan error, 1)}
	select {
	case p.queue <- w:
		return &Putting{t, p, w}, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("put into table %s: %w", t.Name, ctx.Err())
	}
}

// Wait returns where the record stands, once it is durable. It is called once.
func (w *Putting) Wait(ctx context.Context) (Place, error) {
	select {
	case err := <-w.put.done:
		if err != nil {
			return Place{}, fmt.Errorf("put into table %s: %w", w.t.Name, err)
		}
		return Place{w.part.number, w.put.record.Offset}, nil
	case <-ctx.Done():
		return Place{}, fmt.Errorf("put into table %s: %w", w.t.Name, ctx.Err())
	}
}

// Offer puts a record without waiting for anything, for callers that do not need to know: it says whether there was room
// in the queue.
func (t *Table) Offer(key string, value []byte) bool {
	t.count.puts.Add(1)
	select {
	case t.part(group(key)).queue <- &put{record: Record{Key: key, Value: value}}:
		return true
	default:
		return false
	}
}

// Reached waits until this process has read what stands at a place.
func (t *Table) Reached(ctx context.Context, at Place) error {
	p := t.parts[at.Partition]
	for {
		p.mu.Lock()
		if p.next > at.Offset {
			p.mu.Unlock()
			return nil
		}
		if p.arrived == nil {
			p.arrived = make(chan struct{})
		}
		arrived := p.arrived
		p.mu.Unlock()
		select {
		case <-arrived:
		case <-ctx.Done():
			return fmt.Errorf("table %s: wait for offset %d of partition %d: %w", t.Name, at.Offset, at.Partition, ctx.Err())
		}
	}
}

// Sync waits until this process has read all that stood in the log when it was called. It writes into every partition, something that leaves
// no trace.
func (t *Table) Sync(ctx context.Context) error {
	marks := make([]*Putting, len(t.parts))
	for i, found := 0, 0; found < len(marks); i++ {
		key := fmt.Sprintf("~%d", i) // nobody's: it is taken back where it never was
		if p := t.part(key); marks[p.number] == nil {
			w, err := t.Begin(ctx, key, nil)
			if err != nil {
				return err
			}
			marks[p.number], found = w, found+1
		}
	}
	for _, w := range marks {
		at, err := w.Wait(ctx)
		if err != nil {
			return err
		}
		if err := t.Reached(ctx, at); err != nil {
			return err
		}
	}
	return nil
}

// write appends what is put: as much at once as there is, so that many puts cost few appends.
func (t *Table) write(ctx context.Context, p *part) {
	linger := time.NewTimer(time.Hour)
	defer linger.Stop()
	for {
		var batch []*put
		select {
		case w := <-p.queue:
			batch = append(batch, w)
		case <-ctx.Done():
			return
		}
		linger.Reset(t.Linger)
		bytes := len(batch[0].record.Value)
	gather:
		for len(batch) < t.AppendMax && bytes < t.RecordMax {
			select {
			case w := <-p.queue:
				batch = append(batch, w)
				bytes += len(w.record.Value)
			case <-linger.C:
				break gather
			case <-ctx.Done():
				return
			}
		}
		t.append(ctx, p, batch)
	}
}

func (t *Table) append(ctx context.Context, p *part, batch []*put) {
	records := make([]Record, len(batch))
	for i, w := range batch {
		records[i] = w.record
	}
	first, err := t.Log.Append(ctx, p.number, records)
	t.count.appends.Add(1)
	if err != nil {
		t.count.failed.Add(1)
	}
	for i, w := range batch {
		w.record.Offset = first + int64(i)
		if w.done != nil {
			w.done <- err
		} else if err != nil && ctx.Err() == nil {
			t.Logger.Warn("table: a record was not written", "table", t.Name, "error", err)
		}
	}
}

func jitter(d time.Duration) time.Duration {
	return rand.N(d) // #nosec G404 -- a wait, not a secret
}

// repair writes what stands behind what was refused; see the package's words on compaction.
func (t *Table) repair(ctx context.Context, p *part) {
	tick := time.NewTicker(max(t.RepairWait/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		var due []Record
		p.mu.Lock()
		for key, at := range p.doubts {
			if now.Before(at) {
				continue
			}
			e := p.groups[group(key)][key]
			due = append(due, Record{Key: key, Value: e.value})
			p.doubts[key] = now.Add(t.RepairWait + jitter(t.RepairWait)) // unless it comes back in between
		}
		p.mu.Unlock()
		for _, rec := range due {
			if t.Raise != nil && rec.Value != nil {
				rec.Value = t.Raise(rec.Value)
			}
			if t.Offer(rec.Key, rec.Value) {
				t.count.repairs.Add(1)
			}
		}
	}
}
