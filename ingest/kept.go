package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"hearthline/ingest/peers"
	"hearthline/ingest/peers/peerspb"
	"hearthline/ingest/session"
	"hearthline/ingest/table"
)

// sharedSessions keeps sessions in a table, from which another gateway, or the next start of this one, has them, and asks the gateway that
// has a session for it. Keys are user/client, escaped.
//
// A record is written by whoever holds the session, and a gateway that was stopped for a while may wake up and take itself for
// that. So each says by which claim it was written, and the table's rule refuses those of an earlier one. A session's end
// is a record too, for endedKeep, so that it is not undone.
type sharedSessions struct {
	table    *table.Table
	mesh     *peers.Peers
	publish  func(*session.Will)
	bytesMax int // of one state
	logger   *slog.Logger
	saves    atomic.Int64 // records written by this process
}

// endedKeep is how long a session's end is remembered: longer than a gateway that was stopped, and goes on, needs to see that
// its sessions are elsewhere.
const endedKeep = 10 * time.Minute

// kept is a record of the table. Its first member tells records apart, and is read alone: [placeOf]. A state that is too long for a record stands in
// parts, before it in the log.
type kept struct {
	Place place `json:"place"`
	*session.State
}

// place is what records go by.
type place [5]int64

// Members of a place.
const (
	placeEpoch  = iota // of the claim that the record was written under
	placeNumber        // which of its gateway's records it is
	placeUntil         // when it may be swept away, in seconds since 1970; 0: not at all
	placeParts         // that the state stands in; 0: it is here
	placeSlot          // 0 or 1: of the parts; the other is that of the state before, or of the next
)

// same says whether two records were written at once.
func (p place) same(o place) bool {
	return p[placeEpoch] == o[placeEpoch] && p[placeNumber] == o[placeNumber]
}

const placePrefix = `{"place":[`

// placeOf reads a record's place. Records of a version that wrote none are the oldest.
func placeOf(value []byte) (at place) {
	if len(value) < len(placePrefix) || string(value[:len(placePrefix)]) != placePrefix {
		return place{}
	}
	i := 0
	for _, b := range value[len(placePrefix):] {
		switch {
		case b >= '0' && b <= '9':
			at[i] = at[i]*10 + int64(b-'0')
		case b == ',' && i < len(at)-1:
			i++
		default:
			return at
		}
	}
	return at
}

// laterClaim is the rule of the table: a record written under an earlier claim does not take the place of one under a later.
func laterClaim(old, fresh table.Record) bool {
	if old.Value == nil || fresh.Value == nil {
		return true
	}
	was, is := placeOf(old.Value), placeOf(fresh.Value)
	return is[placeEpoch] > was[placeEpoch] || is[placeEpoch] == was[placeEpoch] && is[placeNumber] > was[placeNumber]
}

func sessionKey(k session.Key) string { return peers.SessionKey(k.User, k.Client) }

// Load implements session.Store. Another gateway that has the session is asked for it; if that is dead, or stands still, it is
// what the table has, and its will is seen to here. Whoever held the session lets go of it when it sees the claim of this gateway.
func (s *sharedSessions) Load(ctx context.Context, k session.Key) (*session.State, error) {
	taken, err := s.mesh.TakeOver(ctx, k.User, k.Client)
	switch {
	case err != nil && !errors.Is(err, peers.ErrUnreachable):
		return nil, err
	case err != nil:
		s.logger.Debug("gateway: a session is taken up as it was stored last: who has it does not answer", "client", k.Client, "err", err)
	case taken.Found == peers.Ended:
		return nil, nil
	case taken.Found == peers.Given:
		st := new(session.State)
		if err := json.Unmarshal(taken.State, st); err != nil {
			return nil, fmt.Errorf("the session that another gateway has handed over: %w", err)
		}
		return st, nil
	}
	st, err := s.stored(k)
	if err != nil {
		return nil, err
	}
	s.inherit(st, taken.Wills)
	return st, nil
}

// inherit sees to wills whose gateways are gone: those that need not wait are published. One that has a delay the session keeps, as that of the
// connection which has ended: it is published if the session ends, and forgotten if it goes on. A session of which nothing was stored is lost, but
// its client is back in time.
func (s *sharedSessions) inherit(st *session.State, left []*peerspb.Will) {
	if st != nil {
		st.Will = nil // what was stored of it may have been published since
	}
	now := time.Now()
	for _, w := range left {
		will := willFrom(w)
		waits := will.Delay > 0 && (w.GetDueMillis() == 0 || now.UnixMilli() < w.GetDueMillis())
		switch {
		case !waits || st != nil && st.Expired(now):
			s.publish(will)
		case st != nil:
			st.Will = will
		}
	}
}

// stored gives what the table has of a session.
func (s *sharedSessions) stored(k session.Key) (*session.State, error) {
	rec, ok := s.table.Get(sessionKey(k))
	if !ok || rec.Value == nil {
		return nil, nil
	}
	if at := placeOf(rec.Value); at[placeParts] > 0 {
		text, err := s.joined(k, at)
		if err != nil {
			s.logger.Error("gateway: a stored session is lost", "client", k.Client, "err", err)
			return nil, nil
		}
		rec.Value = text
	}
	var stored kept
	if err := json.Unmarshal(rec.Value, &stored); err != nil {
		return nil, fmt.Errorf("the session's record in table %s: %w", s.table.Name, err)
	}
	return stored.State, nil
}

// Save implements session.Store. A session that another gateway has claimed meanwhile is its own to save.
func (s *sharedSessions) Save(ctx context.Context, st *session.State) error {
	return s.put(ctx, st.Key, st, st.Ends())
}

// Delete implements session.Store. What was never stored costs nothing.
func (s *sharedSessions) Delete(ctx context.Context, k session.Key) error {
	if rec, ok := s.table.Get(sessionKey(k)); !ok || rec.Value == nil {
		return nil
	}
	return s.put(ctx, k, nil, time.Now().Add(endedKeep))
}

func (s *sharedSessions) put(ctx context.Context, k session.Key, st *session.State, until time.Time) error {
	epoch, ours, err := s.mesh.Epoch(ctx, k.User, k.Client)
	if err != nil || !ours {
		return err
	}
	at := place{placeEpoch: epoch, placeNumber: s.saves.Add(1)}
	if !until.IsZero() {
		at[placeUntil] = until.Unix()
	}
	value, err := json.Marshal(kept{Place: at, State: st})
	if err != nil {
		return err
	}
	rec, _ := s.table.Get(sessionKey(k))
	before := placeOf(rec.Value)
	if len(value)+recordRoom > s.table.RecordMax {
		if value, at, err = s.split(ctx, k, value, at, before); err != nil {
			return err
		}
	}
	written, err := s.table.Put(ctx, sessionKey(k), value)
	if err != nil || at[placeParts]+before[placeParts] == 0 {
		return err
	}
	if err := s.table.Reached(ctx, written); err != nil { // the next state goes by it
		return err
	}
	return s.clear(ctx, k, at)
}

// sweepSessionsEvery is how often the table is looked through for what may go.
const sweepSessionsEvery = 5 * time.Minute

// sweepAfter is how much longer than a session its record stays: who holds it deletes it when it ends.
const sweepAfter = time.Minute

// expired says whether a record may be swept away: of a session that ended while no gateway held it, as when one was killed, or of an end that
// need not be remembered any more.
func expired(rec table.Record, now time.Time) bool {
	until := placeOf(rec.Value)[placeUntil]
	return until != 0 && until < now.Add(-sweepAfter).Unix()
}
