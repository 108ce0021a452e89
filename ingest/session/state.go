// Package session is what MQTT keeps of a client beyond one connection, and of a home beyond one client: sessions with
// their subscriptions, messages on their way and wills; who has subscribed to what; retained messages. It knows the
// protocol's rules and no sockets, identities or settings files.
package session

import (
	"context"
	"errors"
	"math"
	"time"

	"hearthline/ingest/mqtt"
)

// Key names a session. A client id belongs to the user that uses it, so that nobody takes over a stranger's.
type Key struct {
	User   string `json:"user"`
	Client string `json:"client"`
}

// State is a session as it is stored while its client is away, or has another gateway.
type State struct {
	Key           Key            `json:"key"`
	Version       byte           `json:"version"`       // MQTT protocol level: 4 or 5
	Expiry        uint32         `json:"expiry"`        // seconds that it outlives its connection; [Forever] is no limit
	Away          time.Time      `json:"away,omitzero"` // When its connection ended; zero: it has one
	Subscriptions []Subscription `json:"subscriptions,omitempty"`
	Received      []uint16       `json:"received,omitempty"` // packet ids of QoS 2 messages that were taken and not released
	Flight        []Delivery     `json:"flight,omitempty"`   // sent and not acknowledged, in this order
	Queue         []Delivery     `json:"queue,omitempty"`    // Not sent yet, in this order
	Will          *Will          `json:"will,omitempty"`     // to be published Will.Delay after Away
}

// Expired says that the session has ended, wherever it is kept.
func (st *State) Expired(now time.Time) bool {
	ends := st.Ends()
	return !ends.IsZero() && !now.Before(ends)
}

// Ends is when the session ends, unless its client comes back; zero: it has a connection, or has no end.
func (st *State) Ends() time.Time {
	if st.Away.IsZero() || st.Expiry == Forever {
		return time.Time{}
	}
	return st.Away.Add(time.Duration(st.Expiry) * time.Second)
}

// Forever is an Expiry without an end.
const Forever = math.MaxUint32

// Subscription is one topic filter of a session.
type Subscription struct {
	Filter  string `json:"filter"` // with $share/{group}/, when it is shared
	Options byte   `json:"options"`
	ID      uint32 `json:"id,omitempty"` // Zero: none
}

// Delivery is a message on its way to one session, QoS 1 or 2.
type Delivery struct {
	Message  *mqtt.Message `json:"message,omitempty"` // nil once it is released: the client has it
	IDs      []uint32      `json:"ids,omitempty"`     // of the subscriptions that it matched
	Share    string        `json:"share,omitempty"`   // the filter of the shared subscription that it came by
	ID       uint16        `json:"id,omitempty"`      // packet id, once it is in flight
	Qos      byte          `json:"qos"`
	Retain   bool          `json:"retain,omitempty"`
	Released bool          `json:"released,omitempty"` // QoS 2: PUBREC has come; PUBREL is what is sent

	acked func() // see [Audience.Hand]; nil for what is simply published
}

// Will is a message that a client leaves behind.
type Will struct {
	Message mqtt.Message `json:"message"`
	Expiry  uint32       `json:"expiry,omitempty"` // seconds from its publication on that it is worth something; 0: for ever
	Delay   uint32       `json:"delay,omitempty"`  // seconds
}

// ErrTooLarge says of a session that it cannot be stored as it is.
var ErrTooLarge = errors.New("the session is too large to be stored")

// Store keeps sessions while their clients are away, for other gateways and other lives of this one. A gateway without
// one keeps them in its memory alone. Calls may take a while; they are bounded by ctx.
type Store interface {
	// Load gives a session and makes it this gateway's: whoever held it has let go of it, and saves it no more. It is
	// nil when there is none, or it has expired.
	Load(ctx context.Context, key Key) (*State, error)
	// Save keeps a session whose connection has ended, and replaces what was kept of it. The state is given away. An error
	// that Is [ErrTooLarge] says that there is no room for this one, whenever it is tried.
	Save(ctx context.Context, s *State) error
	// Delete forgets a session that has ended. To delete what is not there is no error.
	Delete(ctx context.Context, key Key) error
}
