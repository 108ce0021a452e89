package clitest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"hearthline/sinks/clickhouse/embedded"
	embeddedbroker "hearthline/streams/embedded"
)

// Server runs a part of the world beside the roles, which can go away and come back.
type Server struct {
	stop context.CancelFunc
	done chan error
}

// Serve runs it until End.
func Serve(run func(context.Context) error) *Server {
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{stop: stop, done: make(chan error, 1)}
	go func() { s.done <- run(ctx) }()
	return s
}

// End stops it and waits for it.
func (s *Server) End(t *testing.T) {
	t.Helper()
	s.stop()
	if err := <-s.done; err != nil {
		t.Error(err)
	}
}

// Cluster is every role as a process of its own, with a broker and a ClickHouse that are not theirs.
type Cluster struct {
	*Installation
	Env    []string           // of the roles
	Broker string             // host:port
	Engine embedded.Endpoints // of ClickHouse, once it has been started
}

// StartBroker runs an embedded broker at c.Broker.
func (c *Cluster) StartBroker() *Server {
	return Serve(func(ctx context.Context) error {
		b := embeddedbroker.New()
		b.Dir, b.Addr = filepath.Join(c.Dir, "broker"), c.Broker
		return b.Run(ctx)
	})
}

// StartClickHouse runs the engine and waits until it answers.
func (c *Cluster) StartClickHouse() *Server {
	ready := make(chan embedded.Endpoints, 1)
	s := Serve(func(ctx context.Context) error {
		e := embedded.New(filepath.Join(c.Data, "clickhouse"))
		e.Executable, e.HTTPAddr, e.TCPAddr = c.Binary, c.ClickHouseHTTP, c.ClickHouseTCP
		e.Ready = func(at embedded.Endpoints) { ready <- at }
		return e.Run(ctx)
	})
	select {
	case c.Engine = <-ready:
	case err := <-s.done:
		c.t.Fatal(err)
	case <-time.After(3 * time.Minute):
		c.t.Fatal("ClickHouse does not start")
	}
	return s
}

// Role starts a process of one role, with operations endpoints of its own.
func (c *Cluster) Role(args ...string) *Running {
	c.t.Helper()
	r := &Running{t: c.t, Ops: FreeAddr(c.t)}
	r.Cmd = exec.Command(c.Binary, append(args, "--pipeline", c.Pipeline, "--data", c.Data, "--ops", r.Ops)...)
	r.Cmd.Env = append(os.Environ(), c.Env...)
	c.run(r, args)
	return r
}
