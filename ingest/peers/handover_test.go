package peers

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"
)

func (n *node) take(t *testing.T, client string) (string, Found, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	taken, err := n.TakeOver(ctx, "anna", client)
	return string(taken.State), taken.Found, err
}

// TestASessionIsAskedFor lets gateways ask who has a session: the last that claimed it, and the one that it was handed over to
// though its claim is not in the log yet.
func TestASessionIsAskedFor(t *testing.T) {
	_, n := mesh(t, 3)
	large := string(bytes.Repeat([]byte("x"), 3*partBytes+1))
	n[0].sessions = map[string][]byte{"anna|hub/1": []byte(large), "anna|short": nil, "anna|giant": make([]byte, 5<<20)}
	for _, client := range []string{"hub/1", "short", "giant", "gone"} {
		n[0].Claim("anna", client)
	}
	eventually(t, "the claims are known", func() bool { return len(n[1].Tables.Sessions.Scan("")) == 4 && len(n[2].Tables.Sessions.Scan("")) == 4 })
	if state, found, err := n[1].take(t, "hub/1"); err != nil || found != Given || state != large {
		t.Fatalf("%d bytes, %d, %v; want %d", len(state), found, err, len(large))
	}
	if _, found, err := n[1].take(t, "short"); err != nil || found != Ended {
		t.Errorf("a session that ends: %d, %v", found, err)
	}
	for _, client := range []string{"gone", "never"} {
		if _, found, err := n[1].take(t, client); err != nil || found != Nobody {
			t.Errorf("%s: %d, %v", client, found, err)
		}
	}
	if _, _, err := n[1].take(t, "giant"); err == nil {
		t.Error("more is taken than may be")
	}
	// Before the second's claim is in the log, the first knows that it has the session.
	n[1].sessions = map[string][]byte{"anna|hub/1": []byte("newer")}
	if state, found, err := n[0].take(t, "hub/1"); err != nil || found != Given || state != "newer" {
		t.Errorf("%q, %d, %v", state, found, err)
	}
	n[1].Claim("anna", "hub/1")
	eventually(t, "the first has let go", func() bool { return len(n[0].got(&n[0].evicted)) == 1 })
	if state, found, err := n[2].take(t, "hub/1"); err != nil || found != Given || state != "newer" {
		t.Errorf("the third asks: %q, %d, %v", state, found, err)
	}
	if _, found, err := n[1].take(t, "hub/1"); err != nil || found != Nobody {
		t.Errorf("who has it asks for it: %d, %v", found, err)
	}
	n[1].kill()
	if _, found, err := n[2].take(t, "hub/1"); err != nil && !errors.Is(err, ErrUnreachable) || found != Nobody {
		t.Errorf("a gateway that is dead: %d, %v", found, err)
	}
	if s := n[0].Stats(); s.Given != 2 || s.Taken != 1 {
		t.Errorf("%+v", s)
	}
}

// TestEpochs: of all claims to a session the last has the highest epoch, and only its gateway has one.
func TestEpochs(t *testing.T) {
	_, n := mesh(t, 2)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	last := int64(-1)
	for i := range 6 {
		here, there := n[i%2], n[1-i%2]
		here.Claim("anna", "hub")
		epoch, ok, err := here.Epoch(ctx, "anna", "hub")
		if err != nil || !ok || epoch <= last {
			t.Fatalf("claim %d: epoch %d, %t, %v; want more than %d", i, epoch, ok, err, last)
		}
		last = epoch
		eventually(t, "the other has none", func() bool { _, ok, err := there.Epoch(ctx, "anna", "hub"); return !ok && err == nil })
	}
	if _, ok, err := n[0].Epoch(ctx, "anna", "unknown"); ok || err != nil {
		t.Error(ok, err)
	}
}
