package ingest

import (
	"hearthline/ingest/peers/peerspb"
	"hearthline/ingest/session"
)

// willBytesMax bounds a will that is written down for the case that its gateway is killed: it takes its bytes in each gateway. A larger one
// is published as long as its gateway lives.
const willBytesMax = 4 << 10

// Will implements peers.Wills.
func (l local) Will(user, client string) *peerspb.Will {
	left := l.g.registry.Will(session.Key{User: user, Client: client})
	if left == nil || left.Will.Message.Size() > willBytesMax {
		return nil
	}
	home, ok := session.HomeOf(left.Will.Message.Topic)
	if !ok {
		return nil
	}
	w := &peerspb.Will{Number: left.Number, Message: messageTo(home, &left.Will.Message), Expiry: left.Will.Expiry, Delay: left.Will.Delay}
	w.Message.Home = "" // the topic says it
	if !left.Due.IsZero() {
		w.DueMillis = left.Due.UnixMilli()
	}
	return w
}

// WillGone implements peers.Wills.
func (l local) WillGone(user, client string, number uint64) {
	l.g.registry.DropWill(session.Key{User: user, Client: client}, number)
}

// PublishWill implements peers.Wills.
func (l local) PublishWill(w *peerspb.Will) { l.g.registry.PublishWill(willFrom(w)) }

// willFrom is a will of another gateway.
func willFrom(w *peerspb.Will) *session.Will {
	m := messageFrom(w.GetMessage())
	return &session.Will{Message: *m, Expiry: w.GetExpiry(), Delay: w.GetDelay()}
}
