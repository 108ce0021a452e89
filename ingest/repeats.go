package ingest

import (
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"
)

// repeats remembers what was answered to requests that carry a key of their own, so that one that is sent again is
// answered again and not written again. It remembers for a time, up to so many and so many bytes; of one sender at most
// a quarter of both, so that none makes the others' be forgotten. What is still under way is never forgotten: there is
// no more of it than the gateway holds rows.
type repeats struct {
	keysMax  int
	bytesMax int
	keep     time.Duration
	now      func() time.Time
	shared   *answers // nil: no other gateway knows

	mu      sync.Mutex
	known   map[repeatKey]*repeat
	senders map[string]*senderRepeats
	age     *list.List // *repeat that are done, the oldest first
	bytes   int
}

type senderRepeats struct {
	age   *list.List // likewise, of one sender
	keys  int        // done or under way
	bytes int
}

type repeatKey struct {
	sender string
	key    [sha256.Size]byte
}

// repeat is one request. Its fields are guarded by the mutex of repeats.
type repeat struct {
	repeatKey
	print       [sha256.Size]byte // of what was sent under the key
	done        bool
	until       time.Time
	got         *receipt
	refused     *problem
	bytes       int
	all, theirs *list.Element
	claim       *answer // of this gateway among all; nil when the answer is another's
	answer      *answer // of another gateway, until finish has it
}

// repeatBytes is what an entry takes without its rows' verdicts: measured 600 bytes.
const repeatBytes = 640

// Of one sender, this part of what is remembered of all.
const senderPart = 4

var (
	errUnderWay  = errors.New("a request with this key is under way; ask again when it is done")
	errOtherBody = errors.New("this key was used for another body; a key is for one request")
	errRepeats   = errors.New("too many requests with keys are under way")
)

func newRepeats(keysMax, bytesMax int, keep time.Duration, now func() time.Time) *repeats {
	return &repeats{keysMax: keysMax, bytesMax: bytesMax, keep: keep, now: now, known: map[repeatKey]*repeat{}, senders: map[string]*senderRepeats{}, age: list.New()}
}

// begin looks a key up. A repeat that is done comes with what was answered; one that is new is to be ended by finish or
// forget. The error says that the key is under way, or was used for something else.
func (m *repeats) begin(sender, key string, print [sha256.Size]byte) (r *repeat, done bool, err error) {
	k := repeatKey{sender, sha256.Sum256([]byte(key))}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expire()
	if old := m.known[k]; old != nil {
		switch {
		case old.print != print:
			return nil, false, errOtherBody
		case !old.done:
			return nil, false, errUnderWay
		}
		return old, true, nil
	}
	s := m.senders[sender]
	if s == nil {
		s = &senderRepeats{age: list.New()}
	}
	for s.keys >= max(1, m.keysMax/senderPart) && s.age.Len() > 0 {
		m.drop(s.age.Front().Value.(*repeat))
	}
	for len(m.known) >= m.keysMax && m.age.Len() > 0 {
		m.drop(m.age.Front().Value.(*repeat))
	}
	if len(m.known) >= m.keysMax || s.keys >= max(1, m.keysMax/senderPart) {
		return nil, false, errRepeats
	}
	m.senders[sender] = s
	s.keys++
	r = &repeat{repeatKey: k, print: print}
	m.known[k] = r
	return r, false, nil
}

// finish remembers what was answered.
func (m *repeats) finish(r *repeat, got *receipt, refused *problem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.done || m.known[r.repeatKey] != r {
		return
	}
	r.done, r.until, r.got, r.refused, r.bytes = true, m.now().Add(m.keep), got, refused, repeatBytes
	var rows []verdict
	if got != nil {
		rows = got.Rows
	} else if refused != nil {
		rows = refused.Rows
	}
	for i := range rows {
		r.bytes += 64 + len(rows[i].Detail)
	}
	s := m.senders[r.sender]
	r.all, r.theirs = m.age.PushBack(r), s.age.PushBack(r)
	if r.claim != nil {
		m.shared.say(r)
	}
	m.bytes += r.bytes
	s.bytes += r.bytes
	for s.bytes > m.bytesMax/senderPart && s.age.Len() > 0 {
		m.drop(s.age.Front().Value.(*repeat))
	}
	for m.bytes > m.bytesMax && m.age.Len() > 0 {
		m.drop(m.age.Front().Value.(*repeat))
	}
}

// claim asks the other gateways. Those that they have answered are then done; the error is of all of them.
func (m *repeats) claim(ctx context.Context, all []*repeat) error {
	if m.shared == nil {
		return nil
	}
	if err := m.shared.claim(ctx, all); err != nil {
		return err
	}
	for _, r := range all {
		if r.answer != nil {
			m.finish(r, r.answer.Got, r.answer.Refused)
		}
	}
	return nil
}

// forget lets the same key come anew: nothing was done under it.
func (m *repeats) forget(r *repeat) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !r.done && m.known[r.repeatKey] == r {
		m.drop(r)
	}
}

// expire drops what is older than it is kept. Callers hold mu.
func (m *repeats) expire() {
	now := m.now()
	for e := m.age.Front(); e != nil && e.Value.(*repeat).until.Before(now); e = m.age.Front() {
		m.drop(e.Value.(*repeat))
	}
}

// drop callers hold mu.
func (m *repeats) drop(r *repeat) {
	delete(m.known, r.repeatKey)
	if r.claim != nil {
		m.shared.drop(r)
	}
	s := m.senders[r.sender]
	if r.done {
		m.age.Remove(r.all)
		s.age.Remove(r.theirs)
		m.bytes -= r.bytes
		s.bytes -= r.bytes
	}
	if s.keys--; s.keys == 0 {
		delete(m.senders, r.sender)
	}
}

// Limits of a key.
const keyBytesMax = 255

var errKey = errors.New("Idempotency-Key: want 1 to 255 visible ASCII characters, plain or as a quoted string, in one header")

// idempotencyKey reads the header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07): a quoted string of RFC
// 8941, or the plain one that many clients send. It is "" where there is none.
func idempotencyKey(h http.Header) (string, error) {
	all := h.Values("Idempotency-Key")
	if len(all) == 0 {
		return "", nil
	}
	if len(all) > 1 {
		return "", errKey
	}
	v := strings.TrimSpace(all[0])
	if rest, ok := strings.CutPrefix(v, `"`); ok {
		if v, ok = strings.CutSuffix(rest, `"`); !ok || strings.Contains(strings.NewReplacer(`\\`, "", `\"`, "").Replace(v), `"`) {
			return "", errKey
		}
		v = strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(v)
	}
	if v == "" || len(v) > keyBytesMax || strings.ContainsFunc(v, func(c rune) bool { return c < ' ' || c > '~' }) {
		return "", errKey
	}
	return v, nil
}
