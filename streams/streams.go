// Package streams is the road between the sections of a pipeline: Kafka, carrying record batches.
//
// One Kafka message is one [flow.Batch]. What the runtime knows of a batch (lineage, bounds, watermark) stands in
// the message's headers, its rows in the value, as Arrow IPC without the schema; schemas stand once each in the
// compacted stream [SchemaStream], under a fingerprint. wire.go has the layout to the byte.
//
// Connections, TLS, SASL, metadata and routing are kafka-go's, through one [kafka.Transport] a [Client]. Produce
// and fetch are written here on top of it (protocol.RawExchanger): kafka-go's writer is not idempotent, and its
// fetch neither skips aborted transactions nor hands out batches without copying each record.
//
// It needs Apache Kafka 2.8 or newer (topic ids), or a broker that speaks its protocol; streams/embedded is one in
// this process.
package streams

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// Config is how to reach Kafka, and the limits of what is exchanged with it. [New] gives the defaults.
type Config struct {
	// Brokers are addresses (host:port) of which at least one must answer; the others are found through it.
	Brokers []string `yaml:"brokers"`
	// Compression of the values: none, lz4 or zstd. Readers understand all three, whatever this says.
	Compression string `yaml:"compression"`
	// ClientID is what brokers see in their logs and quotas.
	ClientID string `yaml:"client_id"`
	// Replication is the number of copies of the streams that Ensure creates; -1 leaves it to the broker. From 3 on,
	// two copies must have a message before it counts as durable (min.insync.replicas).
	Replication int `yaml:"replication"`
	// MessageBytesMax is the largest message of a stream, in bytes, as the broker counts it. Ensure sets it on
	// the streams it creates. A batch above it is ErrTooLarge.
	MessageBytesMax int `yaml:"message_bytes_max"`
	// DecodedBytesMax is the most memory, in bytes, that one message may take once decompressed and decoded.
	DecodedBytesMax int `yaml:"decoded_bytes_max"`
	// FetchBytesMax is how many bytes one fetch asks for. A reader holds at most three fetches.
	FetchBytesMax int `yaml:"fetch_bytes_max"`
	// FetchWait is how long a broker holds a fetch that finds nothing.
	FetchWait time.Duration `yaml:"fetch_wait"`
	// RequestTimeout is how long one request may take before its connection is given up and it is sent again.
	RequestTimeout time.Duration `yaml:"request_timeout"`

	// TLS encrypts the connections when it is not nil.
	TLS *TLS `yaml:"tls"`
	// SASL logs in when it is not nil.
	SASL *SASL `yaml:"sasl"`
	// Memory is where decoded records live; nil is Go's heap.
	Memory memory.Allocator `yaml:"-"`
}

// New is a Config with every default in place.
func New() Config {
	return Config{
		Compression:     "lz4",
		ClientID:        "hearthline",
		Replication:     -1,
		MessageBytesMax: 8 << 20,
		DecodedBytesMax: 64 << 20,
		FetchBytesMax:   1 << 20,
		FetchWait:       500 * time.Millisecond,
		RequestTimeout:  10 * time.Second,
	}
}

// check completes what is zero with the defaults and refuses what cannot work.
func (c *Config) check() error {
	def := New()
	orDefault(&c.Compression, def.Compression)
	orDefault(&c.ClientID, def.ClientID)
	orDefault(&c.Replication, def.Replication)
	orDefault(&c.MessageBytesMax, def.MessageBytesMax)
	orDefault(&c.DecodedBytesMax, def.DecodedBytesMax)
	orDefault(&c.FetchBytesMax, def.FetchBytesMax)
	orDefault(&c.FetchWait, def.FetchWait)
	orDefault(&c.RequestTimeout, def.RequestTimeout)
	if c.Memory == nil {
		c.Memory = memory.NewGoAllocator()
	}
	if len(c.Brokers) == 0 {
		return errors.New("streams: no broker is configured: set brokers to a list of host:port")
	}
	for _, b := range c.Brokers {
		if _, _, err := net.SplitHostPort(b); err != nil {
			return fmt.Errorf("streams: broker %q is not host:port: %w", b, err)
		}
	}
	if _, err := codecOf(c.Compression); err != nil {
		return fmt.Errorf("streams: %w", err)
	}
	for _, l := range []struct {
		name  string
		value int
	}{{"message_bytes_max", c.MessageBytesMax}, {"decoded_bytes_max", c.DecodedBytesMax}, {"fetch_bytes_max", c.FetchBytesMax}} {
		if l.value < 1<<10 || l.value > 1<<30 {
			return fmt.Errorf("streams: %s is %d; want 1 KiB to 1 GiB", l.name, l.value)
		}
	}
	if c.FetchWait < 0 || c.RequestTimeout <= 0 {
		return fmt.Errorf("streams: fetch_wait is %v and request_timeout is %v; want both above zero", c.FetchWait, c.RequestTimeout)
	}
	return nil
}

func orDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Client is a connection to one Kafka cluster. All of its methods may be called from many goroutines at once.
type Client struct {
	cfg       Config
	log       *slog.Logger
	transport *kafka.Transport
	kafka     *kafka.Client
	addr      net.Addr
	codec     codec
	schemas   *schemas
	dialer    *net.Dialer
	tls       *tls.Config // nil without
	login     *login      // nil without
	count     counters
	now       func() time.Time // that messages carry

	suspects suspects

	refreshMu   sync.Mutex
	refreshedAt time.Time
	refreshGap  time.Duration // until the next one, at least
}

// Dial connects to Kafka and checks that a broker answers and lets this client in. An error that is [Permanent] is one of
// the settings: a login that is refused, TLS where there is none. Close the client when done.
func Dial(ctx context.Context, cfg Config, log *slog.Logger) (*Client, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Client{cfg: cfg, log: log, addr: kafka.TCP(cfg.Brokers...), now: time.Now}
	c.codec, _ = codecOf(cfg.Compression)
	var err error
	if c.tls, err = cfg.TLS.config(); err != nil {
		return nil, final{fmt.Errorf("kafka: %w", err)}
	}
	if c.login, err = cfg.SASL.login(); err != nil {
		return nil, final{fmt.Errorf("kafka: %w", err)}
	}
	c.dialer = &net.Dialer{Timeout: cfg.RequestTimeout / 2, KeepAlive: 30 * time.Second}
	if err := c.greet(ctx); err != nil {
		return nil, err
	}
	c.transport = &kafka.Transport{
		ClientID:    cfg.ClientID,
		DialTimeout: cfg.RequestTimeout / 2,
		// Long polls hold one connection each; what is idle longer than this is not coming back soon.
		IdleTimeout: time.Minute,
		MetadataTTL: 5 * time.Second,
		TLS:         c.tls,
		Dial:        c.dial,
	}
	if c.login != nil { // a nil *login would be a mechanism
		c.transport.SASL = c.login
	}
	c.kafka = &kafka.Client{Addr: c.addr, Transport: c.transport, Timeout: cfg.RequestTimeout}
	c.schemas = newSchemas(c)
	return c, nil
}

// Close ends the client's connections. Producers, readers and groups of the client must have ended.
func (c *Client) Close() error {
	c.transport.CloseIdleConnections()
	return nil
}

// exchange sends one request over the transport, within the request timeout plus extra.
func (c *Client) exchange(ctx context.Context, api protocol.ApiKey, extra time.Duration, req protocol.Message) (protocol.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout+extra)
	defer cancel()
	c.count.request(api)
	res, err := c.transport.RoundTrip(ctx, c.addr, req)
	if err != nil {
		c.count.failures.Add(1)
	}
	return res, err
}

// Refreshes that follow each other are this far apart at first, then twice as far each time, and near again after a
// quiet while: who leads what is known within milliseconds of a move, and a storm of errors is none of metadata.
const (
	refreshGapMin = 10 * time.Millisecond
	refreshGapMax = 100 * time.Millisecond
	refreshQuiet  = time.Second
)

// refresh makes the transport ask anew who leads what, and drops connections that may be dead, if err hints at that.
// kafka-go only looks every MetadataTTL.
func (c *Client) refresh(err error) {
	if !stale(err) {
		return
	}
	c.refreshMu.Lock()
	defer c.refreshMu.Unlock()
	since := time.Since(c.refreshedAt)
	switch {
	case since < c.refreshGap:
		return
	case since > refreshQuiet:
		c.refreshGap = refreshGapMin
	default:
		c.refreshGap = min(2*c.refreshGap, refreshGapMax)
	}
	c.refreshedAt = time.Now()
	c.count.refreshes.Add(1)
	c.transport.CloseIdleConnections()
}
