package ingest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"hearthline/ingest/session"
)

// recordRoom is more than a record of a session has beside its value: its key, and what tells records apart.
const recordRoom = 4 << 10

// partKey is the key of a part: the session's, a slot and a number.
func partKey(k session.Key, slot, i int64) string {
	return sessionKey(k) + "/" + strconv.FormatInt(slot, 10) + "/" + strconv.FormatInt(i, 10)
}

// split writes a record in parts, and gives the one that holds them together. That comes behind them in the log, and the parts of the
// state before stay until it stands: whoever reads finds one of the two whole.
func (s *sharedSessions) split(ctx context.Context, k session.Key, value []byte, at, before place) ([]byte, place, error) {
	if len(value) > s.bytesMax {
		return nil, at, fmt.Errorf("it has %d bytes, at most %d can be stored: %w", len(value), s.bytesMax, session.ErrTooLarge)
	}
	mark, err := json.Marshal(kept{Place: at})
	if err != nil {
		return nil, at, err
	}
	at[placeSlot] = 1 - before[placeSlot]
	for most := s.table.RecordMax - recordRoom; len(value) > 0; at[placeParts]++ {
		part := value[:min(len(value), most)]
		value = value[len(part):]
		if _, err := s.table.Put(ctx, partKey(k, at[placeSlot], at[placeParts]), append(bytes.Clone(mark), part...)); err != nil {
			return nil, at, err
		}
	}
	head, err := json.Marshal(kept{Place: at})
	return head, at, err
}

// joined puts the parts of a record together.
func (s *sharedSessions) joined(k session.Key, at place) ([]byte, error) {
	var value []byte
	for i := range at[placeParts] {
		rec, _ := s.table.Get(partKey(k, at[placeSlot], i))
		end := bytes.IndexByte(rec.Value, '}')
		if end < 0 || !placeOf(rec.Value).same(at) || len(value)+len(rec.Value) > s.bytesMax+s.table.RecordMax {
			return nil, fmt.Errorf("part %d of %d is missing, or another's", i, at[placeParts])
		}
		value = append(value, rec.Value[end+1:]...)
	}
	return value, nil
}

// clear takes away the parts that do not belong to what stands.
func (s *sharedSessions) clear(ctx context.Context, k session.Key, but place) error {
	for _, rec := range s.table.Scan(sessionKey(k) + "/") {
		if placeOf(rec.Value).same(but) {
			continue
		}
		if _, err := s.table.Put(ctx, rec.Key, nil); err != nil {
			return err
		}
	}
	return nil
}
