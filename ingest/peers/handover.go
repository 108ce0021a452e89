package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hearthline/ingest/peers/peerspb"
)

// partBytes is how much of a session's state goes into one gRPC message.
const partBytes = 1 << 20

// asksMax is how many times others are asked for one session: it may have moved on several times while the log was slow to tell.
const asksMax = 4

// Found is what came of asking for a session.
type Found uint8

// Outcomes of [Peers.TakeOver].
const (
	Nobody Found = iota // No other gateway has it: what the tables say of it stands
	Given               // its state was handed over
	Ended               // it has ended with its connection, and stands nowhere
)

// Taken is what there was of a session on other gateways.
type Taken struct {
	Found Found
	State []byte          // where it was given
	Wills []*peerspb.Will // of gateways that are dead, or do not answer: whoever takes the session over publishes or forgets them
}

// TakeOver asks the gateway that has a session for it, on behalf of a client that has connected here: the client's connection there ends
// before it returns, and the other lets go of the session once it sees the claim of this one. It takes as long as one call may
// (call_timeout). An error that Is [ErrUnreachable] says that another gateway claims the session and did not answer: it is dead or
// stands still, and lets go when it sees the claim.
func (p *Peers) TakeOver(ctx context.Context, user, client string) (Taken, error) {
	ctx, cancel := context.WithTimeout(ctx, p.CallTimeout)
	defer cancel()
	session := SessionKey(user, client)
	r := &peerspb.HandOverRequest{By: p.Start, User: user, Client: client, To: p.holder(session)}
	sent := "" // who said that it is there
	for range asksMax {
		if r.To == "" || r.To == p.Start {
			return Taken{Wills: p.orphans(session, "")}, nil
		}
		state, part, err := p.handedOver(ctx, r)
		switch {
		case err != nil && sent != "" && r.Despite == "":
			r.To, r.Despite = sent, r.To
			continue
		case errors.Is(err, errNoWay) && !p.lives(r.To):
			return Taken{Wills: p.orphans(session, "")}, nil
		case err != nil:
			p.count.unanswered.Add(1)
			return Taken{Wills: p.orphans(session, r.To)}, fmt.Errorf("session of client %q at gateway %s: %w: %w", client, r.To, ErrUnreachable, err)
		case part.GetOutcome() == peerspb.HandOverPart_GIVEN:
			p.count.taken.Add(1)
			return Taken{Found: Given, State: state}, nil
		case part.GetOutcome() == peerspb.HandOverPart_ENDED:
			p.count.taken.Add(1)
			return Taken{Found: Ended}, nil
		}
		next := part.GetElsewhere()
		if next == "" {
			next = p.holder(session)
		}
		if next == r.To || next == r.Despite {
			break
		}
		sent, r.To, r.Despite = r.To, next, ""
	}
	return Taken{Wills: p.orphans(session, "")}, nil
}

// handedOver puts the parts of a session's state together.
func (p *Peers) handedOver(ctx context.Context, r *peerspb.HandOverRequest) (state []byte, last *peerspb.HandOverPart, err error) {
	l := p.way(r.GetTo())
	if l == nil {
		return nil, nil, errNoWay
	}
	stream, err := l.client.HandOver(ctx, r)
	for err == nil {
		var part *peerspb.HandOverPart
		if part, err = stream.Recv(); err != nil {
			break
		}
		if last = part; len(state)+len(part.GetState()) > p.StateBytesMax {
			return nil, nil, fmt.Errorf("its state has more than %d bytes", p.StateBytesMax)
		}
		state = append(state, part.GetState()...)
	}
	if !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	return state, last, nil
}

var errNoWay = errors.New("it is gone, or was never there")

// HandOver implements peerspb.GatewaysServer.
func (s server) HandOver(r *peerspb.HandOverRequest, stream grpc.ServerStreamingServer[peerspb.HandOverPart]) error {
	if r.GetTo() != s.p.Start {
		return stream.Send(&peerspb.HandOverPart{Outcome: peerspb.HandOverPart_NOT_HERE})
	}
	if r.GetBy() == "" || r.GetBy() == s.p.Start {
		return status.Error(codes.InvalidArgument, "no other gateway is named")
	}
	session := SessionKey(r.GetUser(), r.GetClient())
	if at := s.p.holder(session); at != "" && at != r.GetDespite() && at != r.GetBy() {
		return stream.Send(&peerspb.HandOverPart{Outcome: peerspb.HandOverPart_NOT_HERE, Elsewhere: at})
	}
	s.p.settleClaim(stream.Context(), r.GetUser(), r.GetClient())
	state, found, err := s.p.Local.HandOver(stream.Context(), r.GetUser(), r.GetClient())
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	if found != Given {
		what := peerspb.HandOverPart_NOT_HERE
		if found == Ended {
			what = peerspb.HandOverPart_ENDED
		}
		return stream.Send(&peerspb.HandOverPart{Outcome: what})
	}
	s.p.lend(session, r.GetBy())
	s.p.count.given.Add(1)
	for {
		part := state[:min(len(state), partBytes)]
		if err := stream.Send(&peerspb.HandOverPart{Outcome: peerspb.HandOverPart_GIVEN, State: part}); err != nil {
			return err
		}
		if state = state[len(part):]; len(state) == 0 {
			return nil
		}
	}
}

// claimWait is how long a session that is asked for waits for this gateway's own claim.
const claimWait = time.Second

// settleClaim waits until this gateway's claim to a session is in the log: that of the gateway which asks for it must stand behind.
// While the log takes nothing the session goes nevertheless, and whose claim comes later then is left to chance.
func (p *Peers) settleClaim(ctx context.Context, user, client string) {
	ctx, cancel := context.WithTimeout(ctx, claimWait)
	defer cancel()
	if _, _, err := p.Epoch(ctx, user, client); err != nil {
		p.Logger.Warn("peers: a session is handed over whose claim the log has not taken yet", "client", client, "error", err)
	}
}
