package ingest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/flow"
	"hearthline/ingest/commands"
	"hearthline/ingest/hook"
	"hearthline/ingest/identity"
	"hearthline/ingest/live"
	"hearthline/ingest/payload"
	"hearthline/ingest/peers"
	"hearthline/ingest/session"
	"hearthline/ingest/shadow"
	"hearthline/ingest/table"
	"hearthline/ingest/wire"
)

// Gateway is the connection tier of one process. Its yaml fields are its settings; [New] fills in their defaults.
// The fields without a yaml name are set by whoever runs it, before Run.
type Gateway struct {
	Admission `yaml:",inline"`

	MQTT  string `yaml:"mqtt"`  // address to listen on, TLS 1.3; "" for none
	HTTP  string `yaml:"http"`  // address to listen on, TLS 1.3; "" for none
	To    string `yaml:"-"`     // stream to write: what pipeline.yaml says of the gateway
	Clock string `yaml:"clock"` // file that keeps the arrival clock over restarts, so that it never goes back; "" for none

	Linger       time.Duration `yaml:"linger"`        // how long the first row of a batch waits for others
	RowsMax      int           `yaml:"rows_max"`      // rows of a batch, and of one MQTT message; a batch may exceed it by a message
	BytesMax     int           `yaml:"bytes_max"`     // Payload bytes of a batch, likewise
	QueueMax     int           `yaml:"queue_max"`     // batches of a partition that wait for the log, besides one being gathered
	Heartbeat    time.Duration `yaml:"heartbeat"`     // between signs of life on a partition without rows
	PublishTime  time.Duration `yaml:"publish_time"`  // of one attempt to publish; it is tried again
	StoreTimeout time.Duration `yaml:"store_timeout"` // Until an HTTP request whose rows are not durable is answered 503

	PayloadBytesMax      int `yaml:"payload_bytes_max"`      // of one MQTT message
	HTTPPayloadBytesMax  int `yaml:"http_payload_bytes_max"` // of one request, as sent
	DecompressedBytesMax int `yaml:"decompressed_bytes_max"` // of one request, decompressed
	HTTPWaitingBytesMax  int `yaml:"http_waiting_bytes_max"` // of all requests at once, decompressed; what goes beyond is answered 503. As rows they take up to five times as much
	HTTPRowsMax          int `yaml:"http_rows_max"`          // rows of one request
	OutboundBytesMax     int `yaml:"outbound_bytes_max"`     // waiting for a client that is slow to read

	MessagesPerSecond float64 `yaml:"messages_per_second"` // of one user, all its connections together; 0: no limit
	MessagesBurst     int     `yaml:"messages_burst"`      // and so many at once
	BytesPerSecond    float64 `yaml:"bytes_per_second"`    // Payload bytes, likewise
	BytesBurst        int     `yaml:"bytes_burst"`

	Hooks               map[string]*hook.Hook `yaml:"hooks"`                 // Clouds that push to POST /v1/hooks/NAME, by name
	IdempotencyKeysMax  int                   `yaml:"idempotency_keys_max"`  // requests with a key whose answer is remembered
	IdempotencyBytesMax int                   `yaml:"idempotency_bytes_max"` // they may take
	IdempotencyTime     time.Duration         `yaml:"idempotency_time"`      // for which they are

	WebSocketOrigins []string `yaml:"websocket_origins"` // of web pages that may speak MQTT over wss, such as https://app.example.com, besides those of the same host; "*" for all

	ConnectionsMax   int           `yaml:"connections_max"`      // open at a time, MQTT and HTTP together
	UserConnections  int           `yaml:"user_connections_max"` // of MQTT, of one user: one stolen password must not take them all
	HandshakesMax    int           `yaml:"handshakes_max"`       // computed at a time
	HandshakeTimeout time.Duration `yaml:"handshake_timeout"`    // for a TLS handshake
	ConnectTimeout   time.Duration `yaml:"connect_timeout"`      // for CONNECT after it
	PacketTimeout    time.Duration `yaml:"packet_timeout"`       // for the rest of an MQTT packet that has begun, and for an HTTP request
	WriteTimeout     time.Duration `yaml:"write_timeout"`        // of one write
	KeepAliveMax     time.Duration `yaml:"keep_alive_max"`       // What MQTT 5 clients are held to; 3.1.1 clients to what they said
	Loop             string        `yaml:"loop"`                 // What drives connections: epoll (Linux) costs least, goroutines runs everywhere
	ReceiveMaximum   int           `yaml:"receive_maximum"`      // QoS 1 and 2 messages of one connection that may wait for the log, or for their PUBREL
	DrainTimeout     time.Duration `yaml:"drain_timeout"`        // from when the last client was sent away to the end, at most

	SessionExpiryMax     time.Duration `yaml:"session_expiry_max"`      // how long a session outlives its connection, at most; 3.1.1 clients without clean session are given all of it; 0: no session does
	SessionsMax          int           `yaml:"sessions_max"`            // sessions of clients that are away; beyond, the one that expires first ends
	UserSessionsMax      int           `yaml:"user_sessions_max"`       // likewise, of one user
	SessionQueueMax      int           `yaml:"session_queue_max"`       // QoS 1 and 2 messages that wait for one client, away or slow
	SessionQueueBytesMax int           `yaml:"session_queue_bytes_max"` // of them, and of those sent and not acknowledged
	QueuedBytesMax       int           `yaml:"queued_bytes_max"`        // of all clients together
	SubscriptionsMax     int           `yaml:"subscriptions_max"`       // topic filters of one session
	RetainedMax          int           `yaml:"retained_max"`            // retained messages of one home
	RetainedBytesMax     int           `yaml:"retained_bytes_max"`      // of them
	RetainedAllBytesMax  int           `yaml:"retained_all_bytes_max"`  // of all homes together

	Peers         peers.Settings    `yaml:"peers"`           // the other gateways
	Commands      commands.Settings `yaml:"commands"`        // what apps ask of devices
	Shadow        shadow.Settings   `yaml:"shadow"`          // what is wanted of devices, and what they were last said to be
	Live          live.Settings     `yaml:"live"`            // streams of what happens in a home
	TableBytesMax int               `yaml:"table_bytes_max"` // of each table that gateways share, in memory

	Logs            func(table string) table.Log `yaml:"-"` // where what gateways share is kept, each of [Tables]; nil: this one is alone, and takes no commands
	TablePartitions int                          `yaml:"-"` // of each of these; 0: as many as the stream has
	CommandsTo      string                       `yaml:"-"` // stream for the steps of commands; "" for none
	Tracer          flow.Tracer                  `yaml:"-"` // nil: nobody traces
	Publisher       Publisher                    `yaml:"-"`
	Sessions        session.Store                `yaml:"-"` // where sessions are kept while their clients are away; nil: in this process alone
	Retained        session.Retained             `yaml:"-"` // where retained messages are kept; nil: in this process alone
	TooLarge        func(error) bool             `yaml:"-"` // says of Publisher's error that smaller batches would pass; may be nil
	Partitions      int                          `yaml:"-"` // of the stream
	Instance        string                       `yaml:"-"` // unique among the gateways of a stream, and stable; the host's name by default
	RunID           string                       `yaml:"-"` // when set, Run ends with a KindEnd of this run in every partition
	Logger          *slog.Logger                 `yaml:"-"`
	Ready           func(at Addresses)           `yaml:"-"` // called once, when both doors are open
	Now             func() time.Time             `yaml:"-"` // the system clock, but in tests

	count      counters
	bodies     atomic.Int64 // Bytes that requests hold
	strangers  atomic.Int64 // Bytes of webhooks whose signature is not verified yet
	hooks      map[string]*openHook
	repeats    *repeats
	clock      *clock
	door       *identity.Door
	live       context.Context // ends when the drain's limit is reached, or everything is done
	open       context.Context // ends when the drain begins
	handshakes chan struct{}
	gate       *gate
	loop       wire.Loop      // what drives MQTT connections
	tasks      conc.WaitGroup // connections and their writes
	stop       chan struct{}  // Closed when the gateway drains
	state      atomic.Int32
	prepared   atomic.Bool // what prepare makes is there
	partitions []*gatherer
	secrets    secrets // by the goroutine that reloads
	mqttTLS    *tlsDoor
	webTLS     *tlsDoor

	registry      session.Registry
	audience      *session.Audience
	near          neighbours
	producer      string
	connectionsMu sync.Mutex
	connections   map[*connection]struct{} // of clients whose CONNECT was accepted
	stays         map[*stay]struct{}       // requests under way; under connectionsMu too
}

// Addresses are those the gateway listens on; nil for a door that is not open.
type Addresses struct{ MQTT, HTTP net.Addr }

// New gives a gateway with the default settings.
func New() *Gateway {
	return &Gateway{
		MQTT: "127.0.0.1:8883", HTTP: "127.0.0.1:8443", To: "raw",
		Linger: 5 * time.Millisecond, RowsMax: 8192, BytesMax: 1 << 20, QueueMax: 4, Heartbeat: time.Second,
		PublishTime: 30 * time.Second, StoreTimeout: 10 * time.Second,
		PayloadBytesMax: 256 << 10, HTTPPayloadBytesMax: 4 << 20, DecompressedBytesMax: 32 << 20, HTTPWaitingBytesMax: 128 << 20, HTTPRowsMax: 100_000, OutboundBytesMax: 1 << 20,
		MessagesPerSecond: 1000, MessagesBurst: 5000, BytesPerSecond: 4 << 20, BytesBurst: 64 << 20,
		IdempotencyKeysMax: 100_000, IdempotencyBytesMax: 128 << 20, IdempotencyTime: 24 * time.Hour,
		ConnectionsMax: 100_000, UserConnections: 100, HandshakesMax: 2 * runtime.GOMAXPROCS(0), HandshakeTimeout: 10 * time.Second, ConnectTimeout: 5 * time.Second,
		PacketTimeout: 30 * time.Second, WriteTimeout: 10 * time.Second, KeepAliveMax: 20 * time.Minute, Loop: wire.Best, ReceiveMaximum: 256,
		SessionExpiryMax: 24 * time.Hour, SessionsMax: 100_000, UserSessionsMax: 100, SessionQueueMax: 1024, SessionQueueBytesMax: 1 << 20, QueuedBytesMax: 256 << 20,
		SubscriptionsMax: 32, RetainedMax: 1024, RetainedBytesMax: 1 << 20, RetainedAllBytesMax: 256 << 20,
		Peers: peers.Defaults(), Commands: commands.Defaults(), Shadow: shadow.Defaults(), Live: live.Defaults(), TableBytesMax: 512 << 20,
		DrainTimeout: 20 * time.Second,
		Admission:    Admission{AcceptsPerSecond: float64(2000 * runtime.GOMAXPROCS(0)), AcceptWait: 20 * time.Second, EvictPerSecond: 500},
		Now:          time.Now,
	}
}

// States of a gateway.
const (
	stateNew int32 = iota
	stateUp
	stateLeaving // it serves, and says that it is not ready
	stateDraining
	stateDown
)

func (g *Gateway) draining() bool { return g.state.Load() >= stateDraining }

// Health says whether the gateway is worth keeping: nil unless Run has ended.
func (g *Gateway) Health() error {
	if g.state.Load() == stateDown {
		return errors.New("the gateway has ended")
	}
	return nil
}

// Readiness says whether new clients should be sent here: nil when the doors are open and the log takes what comes in.
func (g *Gateway) Readiness() error {
	switch g.state.Load() {
	case stateNew:
		return errors.New("the gateway has not opened its doors yet")
	case stateLeaving, stateDraining, stateDown:
		return wire.ErrDraining
	}
	failing := 0
	for _, p := range g.partitions {
		if p.failing.Load() {
			failing++
		}
	}
	if failing > 0 {
		return fmt.Errorf("the log does not take batches of %d of %d partitions", failing, len(g.partitions))
	}
	return nil
}

// Run opens the doors and serves until ctx ends, then drains: it is not ready any more, waits for DrainWait, stops accepting, sends its
// clients away, EvictPerSecond of them a second, each when what it sent is acknowledged (MQTT 5: reason code 0x8B, or 0x9C with
// ServerReference); then it stops reading, publishes what was taken, ends the run in every partition, and returns nil. What is not done
// within DrainTimeout after the clients are gone is given up, with an error that says what; its senders have no
// acknowledgement of it. Run is called once.
func (g *Gateway) Run(ctx context.Context) error {
	if err := g.prepare(); err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	defer g.state.Store(stateDown)
	defer g.stopNeighbours()
	if err := g.startNeighbours(ctx); err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	mqtt, web, err := g.listenBoth()
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	live, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	g.live = live
	var closeDoors context.CancelFunc
	g.open, closeDoors = context.WithCancel(live)
	defer closeDoors()
	var logs, doors conc.WaitGroup
	doors.Go(func() {
		if err := g.loop.Run(); err != nil {
			g.Logger.Error("gateway: connections are not served any more", "err", err)
		}
	})
	results := make([]error, len(g.partitions))
	for i, p := range g.partitions {
		logs.Go(func() { results[i] = p.loop(live) })
	}
	server := g.Serve(&doors, mqtt, web)
	doors.Go(g.reload)
	doors.Go(g.watchKeys)
	doors.Go(func() { g.registry.Run(g.open) })
	doors.Go(g.rest)
	g.state.Store(stateUp)
	if g.Ready != nil {
		g.Ready(Addresses{MQTT: address(mqtt), HTTP: address(web)})
	}
	var lost error
	select {
	case <-ctx.Done():
	case lost = <-g.near.failed:
		lost = fmt.Errorf("gateway: what gateways share is lost: %w", lost)
	}

	g.retreat(mqtt, web)
	limit := time.AfterFunc(g.DrainTimeout, func() {
		giveUp(fmt.Errorf("the drain took longer than %s", g.DrainTimeout))
	})
	defer limit.Stop()
	g.drain(&doors, &logs, closeDoors, server)
	if err := g.clock.save(g.Clock); err != nil {
		g.Logger.Warn("gateway: the arrival clock could not be kept", "err", err)
	}
	if lost != nil {
		return lost
	}
	if err := errors.Join(results...); err != nil {
		return fmt.Errorf("gateway: not everything could be published; what was not is not acknowledged: %w", err)
	}
	return nil
}

// drain follows the data's way: doors, connections, partitions.
func (g *Gateway) drain(doors, logs *conc.WaitGroup, closeDoors func(), server *http.Server) {
	close(g.stop)
	closeDoors()
	if server != nil {
		if err := server.Shutdown(g.live); err != nil {
			server.Close()
		}
	}
	doors.Wait()
	g.tasks.Wait()
	if err := g.registry.SaveAll(g.live); err != nil {
		g.Logger.Warn("gateway: what was kept for clients that are away is lost", "err", err)
	}
	for _, p := range g.partitions {
		p.close()
	}
	logs.Wait()
}

// prepare checks the settings and makes what Run needs.
func (g *Gateway) prepare() error {
	if g.stop != nil {
		return errors.New("Run is called once")
	}
	if err := g.check(); err != nil {
		return err
	}
	g.stop = make(chan struct{})
	g.clock = &clock{system: g.Now}
	g.repeats = newRepeats(g.IdempotencyKeysMax, g.IdempotencyBytesMax, g.IdempotencyTime, g.Now)
	if err := g.openHooks(); err != nil {
		return err
	}
	g.handshakes = make(chan struct{}, g.HandshakesMax)
	g.gate = newGate(&g.Admission)
	g.connections, g.stays = make(map[*connection]struct{}), make(map[*stay]struct{})
	start := g.Instance + "~" + strings.ToLower(rand.Text()[:8])
	g.producer = flow.GatewayProducer(g.Instance, start[len(g.Instance)+1:])
	if err := g.prepareNeighbours(start); err != nil {
		return err
	}
	g.prepareSessions()
	g.door = g.newDoor()
	if err := g.door.Load(); err != nil {
		return err
	}
	g.mqttTLS, g.webTLS = newTLSDoor(&g.count.mqttDoor, "mqtt"), newTLSDoor(&g.count.webDoor, "h2", "http/1.1")
	if err := g.loadTLS(); err != nil {
		return err
	}
	if err := g.clock.restore(g.Clock); err != nil {
		return err
	}
	for i := range g.Partitions {
		g.partitions = append(g.partitions, &gatherer{
			partition: int32(i), stream: g.To, source: flow.Source{Producer: g.producer, Partition: int32(i)},
			publisher: g.Publisher, tooLarge: g.TooLarge, linger: g.Linger, rowsMax: g.RowsMax, bytesMax: g.BytesMax, queueMax: g.QueueMax,
			heartbeat: g.Heartbeat, attemptMax: g.PublishTime, run: g.RunID, clock: g.clock, count: &g.count, logger: g.Logger,
			tracer: g.Tracer, builder: flow.NewEventBuilder(), wake: make(chan struct{}, 1),
		})
	}
	var err error
	g.loop, err = wire.NewLoop(g.Loop, wire.Settings{Stop: g.stop, BytesMax: g.packetMax()})
	g.prepared.Store(err == nil)
	return err
}

// storeTime bounds one call of the store of sessions: a CONNECT waits for it.
const storeTime = 5 * time.Second

func (g *Gateway) prepareSessions() {
	if g.Retained == nil {
		g.Retained = g.retainedMemory()
	}
	g.audience = session.NewAudience(g.SubscriptionsMax)
	if g.near.mesh != nil {
		g.audience.Changed = g.near.mesh.Subscribed
		g.registry.Taken = func(s *session.Session) { s.Mark.Store(g.near.mesh.Claim(s.Key.User, s.Key.Client)) }
		g.registry.Willed = func(s *session.Session) { g.near.mesh.Willed(s.Key.User, s.Key.Client) }
		g.registry.Doubt = func() bool { return !g.near.mesh.Sure() }
		g.registry.Ended = func(s *session.Session) { g.near.mesh.Release(s.Key.User, s.Key.Client, s.Mark.Load()) }
	}
	r := &g.registry
	r.AwayMax, r.UserAwayMax, r.QueueMax, r.QueueBytesMax, r.BytesMax = g.SessionsMax, g.UserSessionsMax, g.SessionQueueMax, g.SessionQueueBytesMax, g.QueuedBytesMax
	r.Store, r.StoreTime, r.Audience, r.Publish, r.Logger = g.Sessions, storeTime, g.audience, g.publishWill, g.Logger
	r.Open()
}

func (g *Gateway) check() error {
	if g.Logger == nil {
		g.Logger = slog.New(slog.DiscardHandler)
	}
	if g.Instance == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("no instance name, and no host name: %w", err)
		}
		g.Instance = name
	}
	if g.Publisher == nil || g.Partitions < 1 {
		return errors.New("no publisher, or no partitions")
	}
	for _, f := range []struct{ name, value string }{{"certificate", g.Certificate}, {"key", g.Key}, {"credentials", g.Credentials}, {"to", g.To}} {
		if f.value == "" {
			return fmt.Errorf("%s is not set", f.name)
		}
	}
	// What stands in sections of its own is checked with the file, too; peers by Prepare.
	if err := g.Commands.Validate(); err != nil {
		return fmt.Errorf("commands: %w", err)
	}
	if err := g.Shadow.Validate(); err != nil {
		return fmt.Errorf("shadow: %w", err)
	}
	if err := g.Live.Validate(); err != nil {
		return fmt.Errorf("live: %w", err)
	}
	return g.Validate()
}

// Validate says what is wrong with the settings by themselves; whether files and addresses are there, Run says.
func (g *Gateway) Validate() error {
	if g.MQTT == "" && g.HTTP == "" {
		return errors.New("neither mqtt nor http has an address to listen on")
	}
	for _, a := range []struct{ name, value string }{{"mqtt", g.MQTT}, {"http", g.HTTP}} {
		if a.value == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(a.value); err != nil {
			return fmt.Errorf("%s is %q; want host:port, such as 127.0.0.1:8883", a.name, a.value)
		}
	}
	for _, n := range []struct {
		name       string
		value, max int
	}{
		{"rows_max", g.RowsMax, 1 << 20}, {"bytes_max", g.BytesMax, 1 << 28}, {"queue_max", g.QueueMax, 1 << 10},
		{"payload_bytes_max", g.PayloadBytesMax, 64 << 20}, {"http_payload_bytes_max", g.HTTPPayloadBytesMax, 1 << 30},
		{"decompressed_bytes_max", g.DecompressedBytesMax, 1 << 30}, {"http_waiting_bytes_max", g.HTTPWaitingBytesMax, 1 << 36}, {"http_rows_max", g.HTTPRowsMax, 1 << 24}, {"outbound_bytes_max", g.OutboundBytesMax, 1 << 30}, {"table_bytes_max", g.TableBytesMax, 1 << 40},
		{"idempotency_keys_max", g.IdempotencyKeysMax, 1 << 24}, {"idempotency_bytes_max", g.IdempotencyBytesMax, 1 << 36},
		{"connections_max", g.ConnectionsMax, 1 << 24}, {"user_connections_max", g.UserConnections, 1 << 24}, {"handshakes_max", g.HandshakesMax, 1 << 16}, {"receive_maximum", g.ReceiveMaximum, 65535},
		{"sessions_max", g.SessionsMax, 1 << 24}, {"user_sessions_max", g.UserSessionsMax, 1 << 24}, {"session_queue_max", g.SessionQueueMax, 1 << 20},
		{"session_queue_bytes_max", g.SessionQueueBytesMax, 1 << 30}, {"queued_bytes_max", g.QueuedBytesMax, 1 << 36}, {"subscriptions_max", g.SubscriptionsMax, 1 << 16},
		{"retained_max", g.RetainedMax, 1 << 24}, {"retained_bytes_max", g.RetainedBytesMax, 1 << 30}, {"retained_all_bytes_max", g.RetainedAllBytesMax, 1 << 36},
	} {
		if n.value < 1 || n.value > n.max {
			return fmt.Errorf("%s is %d; want 1 to %d", n.name, n.value, n.max)
		}
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"heartbeat", g.Heartbeat}, {"publish_time", g.PublishTime}, {"store_timeout", g.StoreTimeout}, {"handshake_timeout", g.HandshakeTimeout},
		{"connect_timeout", g.ConnectTimeout}, {"packet_timeout", g.PacketTimeout}, {"write_timeout", g.WriteTimeout}, {"drain_timeout", g.DrainTimeout}, {"idempotency_time", g.IdempotencyTime},
	} {
		if d.value <= 0 {
			return fmt.Errorf("%s is %s; want more than 0", d.name, d.value)
		}
	}
	if g.Loop != wire.Epoll && g.Loop != wire.Goroutines {
		return fmt.Errorf("loop is %q; want %s or %s", g.Loop, wire.Epoll, wire.Goroutines)
	}
	if least := max(g.HTTPPayloadBytesMax, g.DecompressedBytesMax) + bodyStep; g.HTTPWaitingBytesMax < least {
		return fmt.Errorf("http_waiting_bytes_max is %d, less than one request may take (%d)", g.HTTPWaitingBytesMax, least)
	}
	if g.SessionExpiryMax < 0 || g.SessionExpiryMax > 365*24*time.Hour {
		return fmt.Errorf("session_expiry_max is %s; want 0 to a year (8760h)", g.SessionExpiryMax)
	}
	if g.Linger < 0 || g.KeepAliveMax < time.Second || g.KeepAliveMax > 65535*time.Second {
		return fmt.Errorf("linger %s or keep_alive_max %s out of range", g.Linger, g.KeepAliveMax)
	}
	return errors.Join(g.Admission.check(), g.checkHooks())
}

// packetMax is the largest MQTT packet taken: a payload, and room for a topic and properties.
func (g *Gateway) packetMax() int { return g.PayloadBytesMax + 8<<10 }

// homeOf is the gatherer of a home's rows.
func (g *Gateway) homeOf(home string) *gatherer {
	return g.partitions[flow.PartitionOf(home, len(g.partitions))]
}

// countRows counts the rows that were refused.
func (g *Gateway) countRows(rows []payload.Row) {
	for i := range rows {
		if r := rows[i].Refused; r != nil {
			g.count.rowsRefused[r.Reason].Add(1)
		}
	}
}
