package ingest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/ingest/commands"
	"hearthline/ingest/identity"
	"hearthline/ingest/live"
	"hearthline/ingest/mqtt"
	"hearthline/ingest/peers"
	"hearthline/ingest/peers/peerspb"
	"hearthline/ingest/session"
	"hearthline/ingest/shadow"
	"hearthline/ingest/table"
)

// Tables are what gateways share (decision 24), each under its name as a stream of the log.
var Tables = []string{tableGateways, tableSessions, tableAudiences, tableCommands, tableRetained, tableQueues, tableAnswers, tableShadows}

const (
	tableGateways  = "gateways"
	tableSessions  = "sessions"
	tableAudiences = "audiences"
	tableCommands  = "commands"
	tableRetained  = "retained"
	tableQueues    = "queues"  // sessions whose clients are away, with the messages that wait for them
	tableAnswers   = "answers" // to requests that carry a key
	tableShadows   = "shadows" // what is wanted of devices, and what they were last said to be
)

// neighbours are the other gateways, and what is shared with them. A gateway without logs for its tables has none.
type neighbours struct {
	mesh   *peers.Peers
	desk   *commands.Commands
	shadow *shadow.Shadows
	live   *live.Live
	audit  *commands.Audit
	tables []*table.Table
	asking chan struct{} // commands of MQTT clients that are being accepted or reported

	stopTables, stopWork, stopAudit context.CancelFunc
	running, working, auditing      conc.WaitGroup
	failed                          chan error // of one place: what ended by itself
}

// askingMax bounds the commands of MQTT clients that wait for the table, all together.
const askingMax = 1024

// watchMax is how many changes of a table wait for one event stream, some 6 KB that each stream holds. One that is slower
// looks anew, and is told what stands.
const watchMax = 64

// catchUpMax is how long the start of a gateway waits until it has read its tables.
const catchUpMax = 2 * time.Minute

// stateBytesMin is what a session's state may take besides its messages, as JSON: subscriptions and packet ids at their most.
const stateBytesMin = 8 << 20

// prepareNeighbours makes the tables and those who work on them. start names this start of the gateway.
func (g *Gateway) prepareNeighbours(start string) error {
	n := &g.near
	if g.Logs == nil {
		return nil
	}
	made := map[string]*table.Table{}
	for _, name := range Tables {
		t := table.New()
		t.WatchMax = watchMax
		t.Name, t.Log, t.Partitions, t.BytesMax, t.Logger = name, g.Logs(name), cmp.Or(g.TablePartitions, g.Partitions), g.TableBytesMax, g.Logger
		made[name] = t
		n.tables = append(n.tables, t)
	}
	n.failed = make(chan error, 1)
	n.asking = make(chan struct{}, askingMax)
	n.mesh = &peers.Peers{Settings: g.Peers, Start: start, Local: local{g}, Wills: local{g}, Logger: g.Logger, StateBytesMax: stateBytesMin + 2*g.SessionQueueBytesMax,
		Tables: peers.Tables{Gateways: made[tableGateways], Sessions: made[tableSessions], Audiences: made[tableAudiences]}}
	n.desk = &commands.Commands{Settings: g.Commands, Table: made[tableCommands], Hubs: local{g}, Others: n.mesh, Gateway: start,
		Now: g.Now, Logger: g.Logger, Draining: g.stop}
	n.mesh.Commands = n.desk
	n.shadow = &shadow.Shadows{Settings: g.Shadow, Table: made[tableShadows], Clients: shadowed{g}, Gateway: start, Now: g.Now, Logger: g.Logger}
	n.live = &live.Live{Settings: g.Live, Stop: g.stop, Resume: min(g.Commands.Keep, g.Shadow.Keep) / 2, Sources: [2]live.Source{
		{Name: "shadow", Table: n.shadow.Table, Event: n.shadow.Event, Standing: func(home string, may func(string) bool) (any, error) { return n.shadow.List(home, may) }},
		{Name: "command", Table: n.desk.Table, Event: n.desk.Event, Standing: func(home string, may func(string) bool) (any, error) { return n.desk.Standing(home, may), nil }},
	}}
	if g.CommandsTo != "" {
		n.audit = &commands.Audit{To: g.CommandsTo, Partitions: g.Partitions, Producer: g.producer, RunID: g.RunID, Publisher: g.Publisher, Now: g.Now, Logger: g.Logger}
		if err := n.audit.Prepare(); err != nil {
			return err
		}
		n.desk.Audit, n.shadow.Audit = n.audit.Write, n.wished
	}
	if g.Retained == nil {
		g.Retained = g.shareRetained(made[tableRetained])
	}
	if g.Sessions == nil {
		made[tableQueues].Rule = laterClaim
		g.Sessions = &sharedSessions{table: made[tableQueues], mesh: n.mesh, publish: g.registry.PublishWill, bytesMax: n.mesh.StateBytesMax, logger: g.Logger}
	}
	made[tableAnswers].Rule = answerRule
	g.repeats.shared = &answers{table: made[tableAnswers], start: start, live: n.mesh.Live, keep: g.IdempotencyTime, now: g.Now}
	err := errors.Join(n.mesh.Prepare(), n.desk.Prepare(), n.shadow.Prepare())
	for _, t := range n.tables {
		err = errors.Join(err, t.Prepare())
	}
	return err
}

// startNeighbours runs the tables, waits until they are read, and then what works on them.
func (g *Gateway) startNeighbours(ctx context.Context) error {
	n := &g.near
	if n.mesh == nil {
		return nil
	}
	life := context.WithoutCancel(ctx)
	var tables, work, audit context.Context
	tables, n.stopTables = context.WithCancel(life)
	work, n.stopWork = context.WithCancel(life)
	audit, n.stopAudit = context.WithCancel(life)
	run := func(in *conc.WaitGroup, ctx context.Context, f func(context.Context) error) {
		in.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				select {
				case n.failed <- err:
				default:
				}
			} else if err != nil {
				g.Logger.Warn("gateway: not everything shared with others could be put in order", "err", err)
			}
		})
	}
	for _, t := range n.tables {
		run(&n.running, tables, t.Run)
	}
	wait, cancel := context.WithTimeoutCause(ctx, catchUpMax, fmt.Errorf("they were not read within %s", catchUpMax))
	defer cancel()
	for _, t := range n.tables {
		select {
		case <-t.CaughtUp():
		case err := <-n.failed:
			return err
		case <-wait.Done():
			return fmt.Errorf("read what gateways share: %w", context.Cause(wait))
		}
	}
	if kept, ok := g.Sessions.(*sharedSessions); ok {
		n.working.Go(func() {
			kept.table.Sweep(work, sweepSessionsEvery, n.mesh.First, func(rec table.Record) bool { return expired(rec, g.Now()) })
		})
	}
	n.working.Go(func() {
		g.repeats.shared.table.Sweep(work, sweepAnswersEvery, n.mesh.First, g.repeats.shared.dead)
	})
	run(&n.working, work, n.mesh.Run)
	run(&n.working, work, n.desk.Run)
	run(&n.working, work, n.shadow.Run)
	if n.audit != nil {
		run(&n.auditing, audit, func(ctx context.Context) error { return n.audit.Run(ctx, g.PublishTime) })
	}
	return nil
}

// stopNeighbours takes leave of the others, when no client is left.
func (g *Gateway) stopNeighbours() {
	n := &g.near
	if n.stopTables == nil {
		return
	}
	n.stopWork()
	n.working.Wait()
	n.stopAudit()
	n.auditing.Wait()
	n.stopTables()
	n.running.Wait()
}

// local is this gateway as its neighbours and the commands' desk use it.
type local struct{ g *Gateway }

// Deliver implements peers.Local.
func (l local) Deliver(m *peerspb.Message) {
	l.g.delivered(l.g.audience.Publish(m.GetHome(), messageFrom(m), nil))
}

// Evict implements peers.Local.
func (l local) Evict(user, client string, number uint64) {
	lost, here := l.g.registry.Surrender(session.Key{User: user, Client: client}, number)
	if here {
		l.g.count.takeovers.Add(1)
	}
	if lost {
		l.g.count.sessionsLost.Add(1)
		l.g.Logger.Warn("gateway: another gateway has claimed a session without asking for it; what it had here is lost", "client", client)
	}
}

// HandOver implements peers.Local.
func (l local) HandOver(ctx context.Context, user, client string) (state []byte, found peers.Found, err error) {
	st, ended, here := l.g.registry.HandOver(ctx, session.Key{User: user, Client: client})
	switch {
	case ended:
		l.g.count.takeovers.Add(1)
		return nil, peers.Ended, nil
	case !here:
		return nil, peers.Nobody, nil
	}
	state, err = json.Marshal(st)
	return state, peers.Given, err
}

// Hand implements commands.Hubs.
func (l local) Hand(home string, m commands.Message, delivered func()) bool {
	device, _, _ := commandTopic(m.Topic)
	hub := func(t *session.Terms) bool {
		id, ok := t.Who.(*identity.Identity)
		return ok && id.MayTelemetry(home, device) == nil
	}
	props := textProperty(nil, mqtt.PropContentType, mediaJSON)
	props = textProperty(textProperty(props, mqtt.PropUser, "command-id"), 0, m.ID)
	msg := &mqtt.Message{Topic: m.Topic, Payload: m.Payload, Qos: 1, Expires: m.Expires, Props: props}
	return l.g.audience.Hand(home, msg, hub, delivered) > 0
}

// messageTo is a message as other gateways know it. It borrows nothing.
func messageTo(home string, m *mqtt.Message) *peerspb.Message {
	out := &peerspb.Message{Home: strings.Clone(home), Topic: strings.Clone(m.Topic), Qos: uint32(m.Qos), Retain: m.Retain,
		Payload: append([]byte(nil), m.Payload...), Props: append([]byte(nil), m.Props...)}
	if !m.Expires.IsZero() {
		out.ExpiresMicros = m.Expires.UnixMicro()
	}
	return out
}

// messageFrom is a message of another gateway.
func messageFrom(m *peerspb.Message) *mqtt.Message {
	msg := &mqtt.Message{Topic: m.GetTopic(), Payload: m.GetPayload(), Qos: byte(min(m.GetQos(), 2)), Retain: m.GetRetain(), Props: m.GetProps()} // #nosec G115 -- bounded
	if at := m.GetExpiresMicros(); at > 0 {
		msg.Expires = time.UnixMicro(at)
	}
	return msg
}

// forward hands a message to the other gateways whose clients have subscribed. The message is borrowed.
func (g *Gateway) forward(home string, m *mqtt.Message) {
	if g.near.mesh == nil || !g.near.mesh.Heard(home, m.Topic) {
		return
	}
	g.near.mesh.Publish(messageTo(home, m))
}

// heardElsewhere says whether some other gateway has subscribers at all.
func (g *Gateway) heardElsewhere() bool { return g.near.mesh != nil && g.near.mesh.Audiences() > 0 }

// sharedRoutes adds the API of what gateways share to the HTTP door.
func (g *Gateway) sharedRoutes(mux *http.ServeMux) {
	if g.near.mesh == nil {
		return
	}
	who := func(w http.ResponseWriter, r *http.Request) *identity.Identity {
		id, p := g.authenticate(w, r)
		if p != nil {
			p.write(w)
			return nil
		}
		// An event stream ends with what its reader was let in by, not only when it next has something to say.
		ctx, done := g.during(r.Context(), id)
		context.AfterFunc(r.Context(), done) // it ends when the handler returns
		*r = *r.WithContext(ctx)
		return id
	}
	g.near.desk.Routes(mux, who)
	g.near.shadow.Routes(mux, who)
	g.near.live.Routes(mux, who)
}
