package ingest

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"hearthline/flow"
	"hearthline/ingest/payload"
	"hearthline/ingest/reason"
)

// verdictsMax is how many refused rows an answer lists; it counts them all.
const verdictsMax = 1000

// receipt is the answer to a request of which at least one row is durable.
type receipt struct {
	Accepted int       `json:"accepted"`
	Refused  int       `json:"refused"`
	Repeated int       `json:"repeated,omitempty"` // CloudEvents that had been taken before; their rows are counted above
	Rows     []verdict `json:"rows,omitempty"`

	replayed bool // an answer that was given before
}

// parcel is what is taken, or refused, as a whole: a request, or one of its CloudEvents.
type parcel struct {
	event   *event
	mark    *repeat // of the event; nil for a request, which has its own
	rows    []payload.Row
	refused *reason.Refusal // of all of it
	got     receipt
}

// takeRequest turns a body into rows, hands in the good ones and waits until they are durable. A key makes the same
// request be answered again without being written again.
func (g *Gateway) takeRequest(r *http.Request, from *sender, media, key string, body []byte) (*receipt, *problem) {
	if traces := g.traced(r.Header.Get("traceparent")); traces != nil {
		r = r.WithContext(context.WithValue(r.Context(), traceKey{}, traces))
	}
	if key == "" {
		return g.takeBody(r, from, media, body, nil)
	}
	print := sha256.New()
	print.Write([]byte(r.Header.Get("Content-Type") + "\x00"))
	print.Write(body)
	mark, done, err := g.repeats.begin(from.name, "key "+key, [sha256.Size]byte(print.Sum(nil)))
	if err != nil {
		return nil, g.notAgain(err)
	}
	if !done {
		if err := g.claim(r.Context(), mark); err != nil {
			g.forgetAll(mark, nil)
			return nil, g.notAgain(err)
		}
		done = mark.answer != nil
	}
	if done {
		return g.again(mark)
	}
	return g.takeBody(r, from, media, body, mark)
}

// claim asks the other gateways about keys that are new here.
func (g *Gateway) claim(ctx context.Context, all ...*repeat) error {
	ctx, cancel := context.WithTimeout(ctx, g.StoreTimeout)
	defer cancel()
	return g.repeats.claim(ctx, all)
}

// takeBody ends mark, if there is one, at the latest when the rows are durable.
func (g *Gateway) takeBody(r *http.Request, from *sender, media string, body []byte, mark *repeat) (*receipt, *problem) {
	scope := from.scope
	scope.Now, scope.RowsMax = g.clock.now(), g.HTTPRowsMax
	if isEvents(media, r.Header) {
		return g.takeEvents(r, from, media, body, mark, scope)
	}
	d := decoders.Get().(*payload.Decoder)
	defer decoders.Put(d)
	f, _ := formatOf(media)
	rows, err := d.Decode(f, body, &scope)
	if err != nil {
		g.forgetAll(mark, nil)
		return nil, g.refuseWhole(payload.Malformed(err))
	}
	return g.takeParcels(r.Context(), mark, receipt{}, []parcel{{rows: rows}}, len(body))
}

func (g *Gateway) refuseWhole(r *reason.Refusal) *problem {
	status := http.StatusBadRequest
	if r.Reason == reason.Payload {
		status = http.StatusRequestEntityTooLarge
	}
	return g.refuseRequest(status, strings.ReplaceAll(r.Reason.String(), "_", "-"), r.Reason, r.Detail)
}

// takeEvents takes CloudEvents one by one: each is known by its source and id, whatever request it comes in.
func (g *Gateway) takeEvents(r *http.Request, from *sender, media string, body []byte, mark *repeat, scope payload.Scope) (*receipt, *problem) {
	all, bad := readEvents(media, r.Header, body, g.HTTPRowsMax)
	if bad == nil && len(all) == 0 {
		bad = reason.Refuse(reason.Malformed, "the batch holds no events")
	}
	if bad != nil {
		g.forgetAll(mark, nil)
		return nil, g.refuseWhole(bad)
	}
	var known receipt // what was said of events that were taken before
	parcels, news := make([]parcel, 0, len(all)), make([]*repeat, 0, len(all))
	fail := func(err error) (*receipt, *problem) {
		g.forgetAll(mark, parcels)
		return nil, g.notAgain(err)
	}
	mine := map[string]bool{}
	for i := range all {
		e := &all[i]
		p := parcel{event: e}
		if e.ID != "" && e.Source != "" {
			if mine[e.key()] {
				known.Repeated++
				continue
			}
			m, done, err := g.repeats.begin(from.name, e.key(), [sha256.Size]byte{})
			if err != nil {
				return fail(err)
			}
			if done {
				known.add(m)
				continue
			}
			mine[e.key()], p.mark, news = true, m, append(news, m)
		}
		parcels = append(parcels, p)
	}
	if err := g.claim(r.Context(), news...); err != nil {
		return fail(err)
	}
	parcels = slices.DeleteFunc(parcels, func(p parcel) bool {
		elsewhere := p.mark != nil && p.mark.answer != nil
		if elsewhere {
			known.add(p.mark)
		}
		return elsewhere
	})
	for i := range parcels {
		parcels[i].read(scope)
		scope.RowsMax -= len(parcels[i].rows)
	}
	return g.takeParcels(r.Context(), mark, known, parcels, len(body))
}

// add counts what was said of an event before.
func (r *receipt) add(m *repeat) {
	r.Repeated++
	r.Accepted, r.Refused = r.Accepted+m.got.Accepted, r.Refused+m.got.Refused
}

// read decodes an event. Its rows borrow its own decoder's memory, since all of a request's are in use at once.
func (p *parcel) read(s payload.Scope) {
	s, p.refused = p.event.scope(s)
	if p.refused != nil {
		return
	}
	f, data, bad := p.event.body()
	if p.refused = bad; bad != nil {
		return
	}
	var err error
	if p.rows, err = new(payload.Decoder).Decode(f, data, &s); err != nil {
		p.refused = payload.Malformed(err)
	}
}

// takeParcels hands in the good rows of all parcels together and waits until they are durable. mark is of the request, sum
// what is to be said besides.
func (g *Gateway) takeParcels(ctx context.Context, mark *repeat, sum receipt, all []parcel, bytes int) (*receipt, *problem) {
	var rows []payload.Row
	fresh := 0
	for i := range all {
		p := &all[i]
		p.judge(len(rows))
		g.countRows(p.rows)
		if p.refused != nil {
			g.count.rowsRefused[p.refused.Reason].Add(1)
		}
		fresh += p.got.Accepted
		sum.Accepted, sum.Refused = sum.Accepted+p.got.Accepted, sum.Refused+p.got.Refused
		sum.Rows = append(sum.Rows, p.got.Rows[:min(len(p.got.Rows), verdictsMax-len(sum.Rows))]...)
		if rows == nil {
			rows = p.rows
		} else {
			rows = append(rows, p.rows...)
		}
	}
	finish := func(got *receipt, refused *problem) {
		for i := range all {
			if all[i].mark != nil {
				g.repeats.finish(all[i].mark, &all[i].got, nil)
			}
		}
		if mark != nil {
			g.repeats.finish(mark, got, refused)
		}
	}
	if fresh == 0 {
		if sum.Accepted == 0 {
			p := g.allRefused(all, &sum)
			finish(nil, p)
			return nil, p
		}
		finish(&sum, nil)
		return &sum, nil
	}
	pending, p := g.store(ctx, rows, bytes, func() { finish(&sum, nil) })
	if p != nil && !pending {
		g.forgetAll(mark, all)
	}
	if p != nil {
		return nil, p
	}
	g.count.messages.Add(1)
	return &sum, nil
}

// judge says which rows are not taken. Rows are numbered through the request, from first on.
func (p *parcel) judge(first int) {
	if p.refused != nil {
		p.got.Refused = 1
		p.got.Rows = []verdict{{Row: first, Reason: p.refused.Reason.String(), Detail: p.refused.Detail}}
		return
	}
	for i := range p.rows {
		if r := p.rows[i].Refused; r != nil {
			if p.got.Refused++; len(p.got.Rows) < verdictsMax {
				p.got.Rows = append(p.got.Rows, verdict{Row: first + i, Reason: r.Reason.String(), Detail: r.Detail})
			}
		}
	}
	p.got.Accepted = len(p.rows) - p.got.Refused
}

// forgetAll lets a request, and what is in it, come anew.
func (g *Gateway) forgetAll(mark *repeat, all []parcel) {
	if mark != nil {
		g.repeats.forget(mark)
	}
	for i := range all {
		if all[i].mark != nil {
			g.repeats.forget(all[i].mark)
		}
	}
}

// notAgain answers a key that cannot be taken now, or ever.
func (g *Gateway) notAgain(err error) *problem {
	switch {
	case errors.Is(err, errOtherBody):
		return g.refuseRequest(http.StatusUnprocessableEntity, "idempotency-key-used", reason.Repeated, err.Error())
	case errors.Is(err, errUnderWay):
		p := g.refuseRequest(http.StatusConflict, "idempotency-under-way", reason.Repeated, err.Error())
		p.retryAfter = time.Second
		return p
	}
	return g.busy(err.Error(), reason.Repeated)
}

// again gives the answer to a request once more.
func (g *Gateway) again(m *repeat) (*receipt, *problem) {
	g.count.repeated.Add(1)
	if m.refused != nil {
		return nil, m.refused
	}
	got := *m.got
	got.replayed = true
	return &got, nil
}

// allRefused is the answer when no row can be used: 403 when all speak of what is not theirs, else 400.
func (g *Gateway) allRefused(all []parcel, got *receipt) *problem {
	var first *reason.Refusal
	status, name, detail := http.StatusForbidden, "forbidden", "every row is of another home or device"
	for i := range all {
		for r := range all[i].refusals {
			if first == nil {
				first = r
			}
			if r.Reason != reason.Home && r.Reason != reason.Device {
				status, name, detail = http.StatusBadRequest, "rows", "no row can be used"
			}
		}
	}
	if first == nil {
		status, name, detail = http.StatusBadRequest, "rows", "these events were refused before"
	} else {
		g.count.refused[first.Reason].Add(1)
	}
	p := problemOf(status, name, detail)
	p.Refused, p.Rows = got.Refused, got.Rows
	return p
}

// refusals goes over what is wrong with a parcel.
func (p *parcel) refusals(yield func(*reason.Refusal) bool) {
	if p.refused != nil {
		yield(p.refused)
		return
	}
	for i := range p.rows {
		if r := p.rows[i].Refused; r != nil && !yield(r) {
			return
		}
	}
}

// store hands rows in, a batch's worth at a time, and waits until all are durable, StoreTimeout at most. durable is called
// once when they are, also when that is after it gave up waiting: pending says that it may yet be. Where not even all
// could be handed in, some may become durable all the same: the sender repeats the request, and dedupe drops what is double.
func (g *Gateway) store(ctx context.Context, rows []payload.Row, bytes int, durable func()) (pending bool, p *problem) {
	ctx, cancel := context.WithTimeout(ctx, g.StoreTimeout)
	defer cancel()
	parts := g.shares(rows, min(g.RowsMax, max(1, len(rows)*g.BytesMax/max(1, bytes))))
	t := &ticket{done: make(chan struct{}), durably: durable}
	t.traces, _ = ctx.Value(traceKey{}).([]string)
	t.left.Store(int64(len(parts)))
	for _, part := range parts {
		if p := g.handInRows(ctx, part.to, part.rows, bytes*len(part.rows)/len(rows), t); p != nil {
			return false, p
		}
	}
	select {
	case <-t.done:
		return false, nil
	case <-ctx.Done():
	case <-g.live.Done():
	}
	return true, g.busy("the log did not take the rows in time; send them again", reason.BackPressure)
}

// handInRows waits until there is room for some rows.
func (g *Gateway) handInRows(ctx context.Context, to *gatherer, some []payload.Row, bytes int, t *ticket) *problem {
	for {
		g.clock.now()
		full := to.offer(some, bytes, t, 0, t.traces...)
		if full == nil {
			return nil
		}
		g.count.held.Add(1)
		select {
		case <-full:
		case <-ctx.Done():
			return g.busy("the log takes no more rows now", reason.BackPressure)
		case <-g.live.Done():
			return g.busy("the gateway is going down", reason.Draining)
		}
	}
}

// share is some of a request's rows, all for one partition.
type share struct {
	to   *gatherer
	rows []payload.Row
}

// shares gives the usable rows by partition, in their order, at most so many in one.
func (g *Gateway) shares(rows []payload.Row, rowsMax int) (out []share) {
	last := make(map[*gatherer]int) // the share in out that takes a partition's next row
	for i := range rows {
		if rows[i].Refused != nil {
			continue
		}
		to := g.homeOf(rows[i].Home)
		at, ok := last[to]
		if !ok || len(out[at].rows) == rowsMax {
			at, last[to] = len(out), len(out)
			out = append(out, share{to: to})
		}
		out[at].rows = append(out[at].rows, rows[i])
	}
	return out
}

// ticket waits for the chunks of one request.
type ticket struct {
	left    atomic.Int64
	done    chan struct{}
	durably func()   // must not block
	traces  []string // of the request
}

func (t *ticket) durable(uint64) bool {
	if t.left.Add(-1) == 0 {
		t.durably()
		close(t.done)
	}
	return false
}

func (t *ticket) settle() {}

type traceKey struct{}

// traced gives a traceparent where somebody traces, and it is sampled.
func (g *Gateway) traced(traceparent string) []string {
	if g.Tracer == nil || !flow.Traced(traceparent) {
		return nil
	}
	return []string{strings.Clone(traceparent)}
}
