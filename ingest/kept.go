package ingest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"time"

	"hearthline/ingest/session"
	"hearthline/ingest/table"
)

// sharedSessions keeps sessions in a table, from which another gateway, or the next start of this one, has them. Keys are
// user/client, escaped.
type sharedSessions struct{ table *table.Table }

func sessionKey(k session.Key) string {
	return url.PathEscape(k.User) + "/" + url.PathEscape(k.Client)
}

// Load implements session.Store. Whoever held the session lets go of it when it sees the claim of this gateway.
func (s sharedSessions) Load(_ context.Context, k session.Key) (*session.State, error) {
	rec, ok := s.table.Get(sessionKey(k))
	if !ok || rec.Value == nil {
		return nil, nil
	}
	st := new(session.State)
	if err := json.Unmarshal(rec.Value, st); err != nil {
		return nil, fmt.Errorf("the session's record in table %s: %w", s.table.Name, err)
	}
	return st, nil
}

// Save implements session.Store.
func (s sharedSessions) Save(ctx context.Context, st *session.State) error {
	value, err := json.Marshal(st)
	if err != nil {
		return err
	}
	_, err = s.table.Put(ctx, sessionKey(st.Key), value)
	return err
}

// sweep deletes the sessions that have expired while no gateway held them: those of one that was killed.
func (s sharedSessions) sweep(ctx context.Context, now time.Time) error {
	for _, rec := range s.table.Scan("") {
		st := new(session.State)
		if rec.Value == nil || json.Unmarshal(rec.Value, st) != nil || !st.Expired(now) {
			continue
		}
		if _, err := s.table.Put(ctx, rec.Key, nil); err != nil {
			return fmt.Errorf("delete expired sessions: %w", err)
		}
	}
	return nil
}

// Delete implements session.Store. What was never stored costs nothing.
func (s sharedSessions) Delete(ctx context.Context, k session.Key) error {
	if rec, ok := s.table.Get(sessionKey(k)); !ok || rec.Value == nil {
		return nil
	}
	_, err := s.table.Put(ctx, sessionKey(k), nil)
	return err
}
