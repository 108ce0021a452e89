// Package console is the web page on which one sees a pipeline run, its API, and the endpoints that every role
// serves to whoever operates it: /metrics, /healthz and /readyz.
//
// It looks and never touches: every request is a GET. It trusts no name that a device may have made up, and no page
// but its own. On loopback it asks for nothing. Where others reach it, it needs a token, and shows no more than
// /healthz and /readyz without one.
package console

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sourcegraph/conc/pool"
	"golang.org/x/net/netutil"

	"hearthline/pipeline"
	"hearthline/pipeline/compare"
	"hearthline/pipeline/run"
)

// DefaultListen is loopback, where no token is needed.
const DefaultListen = "127.0.0.1:8080"

// Server serves the console. Its fields are set before Run and not changed. Each may be left out; the page then
// leaves that part out.
type Server struct {
	Listen string // host:port; "" is [DefaultListen]; port 0 picks a free one
	Token  string // who has it sees everything; with one nobody else does, also on loopback. See [CheckToken]
	// Insecure shows everything to everybody, wherever it listens: something in front asks who comes.
	Insecure bool
	// MetricsOpen shows /metrics without a token: something beside it (a NetworkPolicy) keeps others away.
	MetricsOpen bool
	Plan        *pipeline.Plan
	Meter       *run.Meter
	Gatherer    prometheus.Gatherer
	Log         *slog.Logger
	Live        func() error // why the process is beyond help; nil error: it is not
	ReadyErr    func() error // why it cannot take work now; nil error: it can
	Links       []Link
	Queries     []Query
	Taps        *Taps
	Ready       func(addr string) // called once it listens
	// Lag gives, by node (unit or sink) and stream, the messages of each partition that are not taken yet.
	Lag func(context.Context) (map[string]map[string][]int64, error)
	// Numbers and Alerts (newest first) are asked every other second while somebody looks. Numbers that come with an
	// error are those that could be had.
	Numbers func(context.Context) ([]Number, error)
	Alerts  func(context.Context) ([]Alert, error)
	// Tail gives the rows that pass on a stream that is on Kafka to give (which borrows them) until ctx ends. It is
	// called for each who looks. nil: such streams are looked at through Taps, which sees what this process offers.
	Tail func(ctx context.Context, stream string, give func(partition int32, rec arrow.Record)) error
	// Compare gives a comparison what its streams say from now on, until ctx ends; nil: nobody can look at versions here.
	Compare func(context.Context, *compare.Comparison) error

	at        door
	graph     *Graph
	sampler   sampler
	statuses  func() []run.NodeStatus // of Meter
	lag       *poll[map[string]map[string][]int64]
	numbers   *poll[[]Number]
	alerts    *poll[[]Alert]
	feed      *feed
	looking   chan struct{} // a slot for each who looks at rows
	writeWait time.Duration // for one piece of an endless answer
}

const (
	requestTimeout = 30 * time.Second // to write an answer; streams set their own, for each write
	drainTimeout   = 3 * time.Second
	connectionsMax = 256 // open at once; more wait to be taken
)

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	if err := CheckToken(s.Token); err != nil {
		return err
	}
	s.init()
	listener, err := s.listen(ctx)
	if err != nil {
		return err
	}
	s.at = s.door(listener.Addr())
	listener = netutil.LimitListener(listener, connectionsMax)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx }, // streams end with it
	}
	if s.Log != nil {
		server.ErrorLog = slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug)
	}
	if s.Ready != nil {
		s.Ready(listener.Addr().String())
	}
	p := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
	p.Go(func(context.Context) error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("console: serve %s: %w", listener.Addr(), err)
		}
		return nil
	})
	p.Go(func(ctx context.Context) error {
		<-ctx.Done()
		cancel()
		drain, stop := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer stop()
		if err := server.Shutdown(drain); err != nil {
			return server.Close()
		}
		return nil
	})
	s.background(p)
	return p.Wait()
}

// init makes what handlers need.
func (s *Server) init() {
	if s.Listen == "" {
		s.Listen = DefaultListen
	}
	if s.Plan != nil {
		s.graph = newGraph(s.Plan)
	}
	if s.statuses == nil {
		s.statuses = func() []run.NodeStatus {
			var all []run.NodeStatus
			if s.Meter != nil {
				for _, n := range s.Meter.Nodes() {
					all = append(all, n.Status())
				}
			}
			return all
		}
	}
	if s.Lag != nil {
		s.lag = newPoll(s.Lag, true) // whether it grows can only be told by who has looked before
	}
	if s.Numbers != nil {
		s.numbers = newPoll(s.Numbers, false)
		s.numbers.partial = func(n []Number) bool { return len(n) > 0 }
	}
	if s.Alerts != nil {
		s.alerts = newPoll(s.Alerts, false)
	}
	s.feed = newFeed()
	if s.writeWait == 0 {
		s.writeWait = writeTimeout
	}
	s.looking = make(chan struct{}, tapsMax)
}

// background starts what goes on beside the requests.
func (s *Server) background(p *pool.ContextPool) {
	if s.lag != nil {
		p.Go(s.lag.run)
	}
	if s.numbers != nil {
		p.Go(s.numbers.run)
	}
	if s.alerts != nil {
		p.Go(s.alerts.run)
	}
	p.Go(func(ctx context.Context) error {
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			s.sample(time.Now())
			if err := s.feed.publish(s.status); err != nil {
				return fmt.Errorf("console: %w", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
}

// sample reads all counters.
func (s *Server) sample(now time.Time) {
	next := sample{at: now, nodes: s.statuses()}
	if s.lag != nil {
		if lag, err := s.lag.get(); err == nil {
			next.lag = lag
		}
	}
	s.sampler.add(next)
}

// status puts together what is known.
func (s *Server) status() *Status {
	status := &Status{
		Nodes: []NodeView{}, Streams: []StreamView{}, Edges: []EdgeView{}, Numbers: []Number{},
		Agreement: []Agreement{}, Alerts: []AlertView{}, Problems: []Problem{},
	}
	status.Live, status.Ready = reason(s.Live), reason(s.ReadyErr)
	s.sampler.views(s.graph, status)
	if s.graph != nil {
		status.Pipeline = s.graph.Pipeline
		status.Verdict = judge(s.graph, status)
	}
	if s.lag != nil {
		_, err := s.lag.get()
		status.note("lag", err)
	}
	if s.numbers != nil {
		numbers, err := s.numbers.get()
		status.note("numbers", err)
		status.Numbers = append(status.Numbers, numbers...)
		status.Agreement = agreements(numbers)
	}
	if s.alerts != nil {
		alerts, err := s.alerts.get()
		status.note("alerts", err)
		for _, a := range alerts[:min(len(alerts), alertsMax)] {
			status.Alerts = append(status.Alerts, a.view())
		}
	}
	return status
}

// alertsMax is how many alerts the page shows.
const alertsMax = 50

func (s *Status) note(what string, err error) {
	if err != nil {
		s.Problems = append(s.Problems, Problem{What: what, Error: err.Error()})
	}
}

func reason(check func() error) string {
	if check == nil {
		return ""
	}
	if err := check(); err != nil {
		return err.Error()
	}
	return ""
}

func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", s.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("console: %w; another process serves there: end it, or choose another address "+
			"(console.listen in pipeline.yaml; port 0 picks a free one)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("console: %w; the address must be host:port with a host of this machine", err)
	}
	return listener, nil
}
