package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/sourcegraph/conc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"hearthline/ingest/peers/peerspb"
)

// Limits of a connection between two gateways.
const (
	keepAliveEvery   = 10 * time.Second // a silent connection is asked whether it lives
	keepAliveTimeout = 5 * time.Second  // and is given up when it does not answer
	backoffMin       = 100 * time.Millisecond
	backoffMax       = 2 * time.Second
	messageBytesMax  = 8 << 20 // of one gRPC message
	stopWait         = 2 * time.Second
)

// link is the way to one other gateway.
type link struct {
	conn   *grpc.ClientConn
	client peerspb.GatewaysClient
	queue  chan *peerspb.Message
	cancel context.CancelFunc
	work   conc.WaitGroup
}

// dial makes the way to another gateway. gRPC connects, and connects again, by itself.
func (p *Peers) dial(address string) (*link, error) {
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(p.security), grpc.WithAuthority(p.ServerName),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepAliveEvery, Timeout: keepAliveTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: p.CallTimeout,
			Backoff: backoff.Config{BaseDelay: backoffMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: backoffMax}}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytesMax), grpc.MaxCallSendMsgSize(messageBytesMax)))
	if err != nil {
		return nil, fmt.Errorf("reach gateway at %s: %w", address, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &link{conn: conn, client: peerspb.NewGatewaysClient(conn), queue: make(chan *peerspb.Message, p.QueueMax), cancel: cancel}
	l.work.Go(func() { p.pump(ctx, l) })
	return l, nil
}

func (o *other) close() {
	if o.link != nil {
		o.link.cancel()
		_ = o.link.conn.Close() // it only fails when it is closed
		o.link.work.Wait()
		o.link = nil
	}
}

// reach dials the others as they come and go.
func (p *Peers) reach(ctx context.Context) error {
	for {
		select {
		case <-p.moved:
		case <-ctx.Done():
			return nil
		}
		p.mu.Lock()
		for _, o := range p.others {
			switch {
			case o.gone:
				o.close()
			case o.link == nil && o.address != "":
				l, err := p.dial(o.address)
				if err != nil {
					p.Logger.Error("peers: a gateway cannot be dialled", "gateway", o.start, "error", err)
					continue
				}
				o.link = l
			}
		}
		p.mu.Unlock()
	}
}

// pump carries messages over a stream, and over another when that breaks. Those on their way when it breaks are lost, as
// live messages are that nobody acknowledges between gateways.
func (p *Peers) pump(ctx context.Context, l *link) {
	wait := backoffMin
	for ctx.Err() == nil {
		stream, err := l.client.Publish(ctx, grpc.WaitForReady(true))
		if err == nil {
			wait = backoffMin
			err = p.carry(ctx, l, stream)
		}
		if ctx.Err() != nil {
			return
		}
		p.Logger.Debug("peers: the stream to another gateway has ended", "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, backoffMax)
	}
}

func (p *Peers) carry(ctx context.Context, l *link, stream grpc.ClientStreamingClient[peerspb.Message, peerspb.Published]) error {
	for {
		select {
		case m := <-l.queue:
			if err := stream.Send(m); err != nil {
				p.count.lost.Add(1)
				if errors.Is(err, io.EOF) {
					_, err = stream.CloseAndRecv()
				}
				return err
			}
			p.count.sent.Add(1)
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// way gives the link to a start; nil when it is not known, or gone.
func (p *Peers) way(start string) *link {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.others[start]; o != nil && !o.gone {
		return o.link
	}
	return nil
}

// ErrUnreachable says that another gateway could not be spoken to: what it was told may have come to it.
var ErrUnreachable = errors.New("the other gateway cannot be reached")

// Command hands a command to another gateway.
func (p *Peers) Command(ctx context.Context, start string, command []byte) (peerspb.CommandReply_Outcome, error) {
	l := p.way(start)
	if l == nil {
		return peerspb.CommandReply_NOT_HERE, nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.CallTimeout)
	defer cancel()
	since := time.Now()
	reply, err := l.client.Command(ctx, &peerspb.CommandRequest{To: start, Command: command})
	if err != nil {
		p.count.failed.Add(1)
		return peerspb.CommandReply_UNKNOWN, fmt.Errorf("command to gateway %s: %w: %w", start, ErrUnreachable, err)
	}
	p.count.commands.Add(1)
	p.count.call.Observe(time.Since(since))
	return reply.GetOutcome(), nil
}

// server is what the others call.
type server struct {
	peerspb.UnimplementedGatewaysServer
	p *Peers
}

// Publish implements peerspb.GatewaysServer.
func (s server) Publish(stream grpc.ClientStreamingServer[peerspb.Message, peerspb.Published]) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&peerspb.Published{})
		}
		if err != nil {
			return err
		}
		s.p.count.received.Add(1)
		s.p.Local.Deliver(m)
	}
}

// Command implements peerspb.GatewaysServer.
func (s server) Command(ctx context.Context, r *peerspb.CommandRequest) (*peerspb.CommandReply, error) {
	if r.GetTo() != s.p.Start || s.p.Commands == nil {
		return &peerspb.CommandReply{Outcome: peerspb.CommandReply_NOT_HERE}, nil
	}
	if len(r.GetCommand()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "an empty command")
	}
	return &peerspb.CommandReply{Outcome: s.p.Commands.Take(ctx, r.GetCommand())}, nil
}

// serve answers the others until ctx ends.
func (p *Peers) serve(ctx context.Context, ln net.Listener) error {
	g := grpc.NewServer(
		grpc.Creds(p.security), grpc.ConnectionTimeout(p.CallTimeout),
		grpc.MaxConcurrentStreams(uint32(p.CallsMax)), // #nosec G115 -- a setting, checked
		grpc.MaxRecvMsgSize(messageBytesMax),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepAliveEvery, Timeout: keepAliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepAliveEvery / 2, PermitWithoutStream: true}))
	peerspb.RegisterGatewaysServer(g, server{p: p})
	end := context.AfterFunc(ctx, func() {
		last := time.AfterFunc(stopWait, g.Stop) // the streams of the others do not end by themselves
		defer last.Stop()
		g.GracefulStop()
	})
	defer end()
	if err := g.Serve(ln); err != nil && ctx.Err() == nil {
		return fmt.Errorf("peers: %w", err)
	}
	return nil
}
