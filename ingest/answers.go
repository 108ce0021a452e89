package ingest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"hearthline/ingest/table"
)

// answers is what was answered under the keys of requests, shared with the other gateways: a cloud that had no answer sends
// again, and a balancer gives that to anyone. Before a request with a key is written its gateway claims the key in the
// table; of two claims at once the first in the log stands. When the rows are durable the answer takes the claim's place.
//
// A gateway that is killed between the two leaves a claim of a start that is gone, and nobody can say whether the rows are in the
// log: the next one takes the request anew.
type answers struct {
	table *table.Table
	start string          // of this gateway
	live  func() []string // the starts of the others
	keep  time.Duration
	now   func() time.Time
}

// answer is a record of the table.
type answer struct {
	Start   string    `json:"start"`   // who claimed it
	Attempt int       `json:"attempt"` // counts those who claimed it, from 1
	Print   []byte    `json:"print"`   // of what was sent under the key
	Until   time.Time `json:"until"`
	State   int       `json:"state"` // only rises within an attempt
	Got     *receipt  `json:"got,omitempty"`
	Refused *problem  `json:"refused,omitempty"`
}

// States of an answer.
const (
	answerClaimed = iota
	answerGiven
	answerForgotten // what was claimed may come anew; an answer is remembered no longer
)

// valid says whether others are to keep to it.
func (a *answer) valid(now time.Time) bool { return a.State != answerForgotten && a.Until.After(now) }

// answerRule lets a later attempt take the place of one before, and what becomes of it that of its claim. Who deletes a
// record has found it to be worth nothing.
func answerRule(old, new table.Record) bool {
	if old.Value == nil || new.Value == nil {
		return true
	}
	was, ok := decodeAnswer(old)
	is, good := decodeAnswer(new)
	if !ok || !good {
		return good
	}
	return is.Attempt > was.Attempt || is.Attempt == was.Attempt && is.Start == was.Start && is.State > was.State
}

// tableKey has the sender first: all of a sender's stand in one partition, in one order.
func (k *repeatKey) tableKey() string {
	sender := sha256.Sum256([]byte(k.sender))
	return hex.EncodeToString(sender[:16]) + "/" + hex.EncodeToString(k.key[:])
}

// claim makes requests ours, or says what others have answered to them; then it stands in their answer and they have no claim. The
// error is errUnderWay, errOtherBody, or that the log does not take claims; those claimed are to be forgotten then.
func (a *answers) claim(ctx context.Context, all []*repeat) error {
	var mine []*repeat
	var puts []*table.Putting
	for _, r := range all {
		old, known := a.look(r)
		if known && old.valid(a.now()) {
			if err := a.judge(r, old); err != nil {
				return err
			}
			if old.State == answerGiven {
				r.answer = old
				continue
			}
		}
		r.claim = &answer{Start: a.start, Attempt: 1, Print: r.print[:], Until: a.now().Add(a.keep)}
		if known {
			r.claim.Attempt = old.Attempt + 1
		}
		value, err := json.Marshal(r.claim)
		if err != nil {
			return err
		}
		w, err := a.table.Begin(ctx, r.tableKey(), value)
		if err != nil {
			return err
		}
		mine, puts = append(mine, r), append(puts, w)
	}
	for i, w := range puts {
		at, err := w.Wait(ctx)
		if err == nil {
			err = a.table.Reached(ctx, at)
		}
		if err != nil {
			return err
		}
		if now, known := a.look(mine[i]); !known || now.Start != a.start || now.Attempt != mine[i].claim.Attempt {
			return errUnderWay // somebody was first
		}
	}
	return nil
}

// judge says why a request whose key is known cannot be taken.
func (a *answers) judge(r *repeat, old *answer) error {
	switch {
	case [sha256.Size]byte(old.Print) != r.print:
		return errOtherBody
	case old.State == answerClaimed && slices.Contains(a.live(), old.Start):
		return errUnderWay
	}
	return nil
}

func (a *answers) look(r *repeat) (*answer, bool) {
	rec, _ := a.table.Get(r.tableKey())
	return decodeAnswer(rec)
}

func decodeAnswer(rec table.Record) (*answer, bool) {
	a := new(answer)
	if rec.Value == nil || json.Unmarshal(rec.Value, a) != nil || len(a.Print) != sha256.Size {
		return nil, false
	}
	return a, true
}

// say tells the others what was answered. It does not wait: an answer that comes to be lost with this gateway is as if it had
// been killed before.
func (a *answers) say(r *repeat) {
	said := *r.claim
	said.State, said.Got, said.Refused = answerGiven, r.got, r.refused
	value, err := json.Marshal(said)
	if err == nil && len(value) > a.table.RecordMax/2 && said.Got != nil { // the verdicts of each row are what is long
		short := *said.Got
		short.Rows, said.Got = nil, &short
		value, err = json.Marshal(said)
	}
	if err != nil || !a.table.Offer(r.tableKey(), value) {
		a.table.Logger.Warn("gateway: the answer to a request with a key was not shared: other gateways take it to be under way", "err", err)
	}
}

// drop takes a claim or an answer of this gateway back. Where another's stands, nothing happens.
func (a *answers) drop(r *repeat) {
	if value, err := json.Marshal(answer{Start: r.claim.Start, Attempt: r.claim.Attempt, Print: r.claim.Print, Until: r.claim.Until, State: answerForgotten}); err == nil {
		a.table.Offer(r.tableKey(), value)
	}
}

// sweepAnswersEvery is how often answers are looked through for those that are worth nothing any more.
const sweepAnswersEvery = time.Hour

// dead says whether a record may go.
func (a *answers) dead(rec table.Record) bool {
	old, ok := decodeAnswer(rec)
	return !ok || !old.valid(a.now())
}
