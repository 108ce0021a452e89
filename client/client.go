package client

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/sourcegraph/conc/pool"
)

// Client is one connection to Hearthline and the outbox before it. Make it with [New], set its fields, then call Run once.
// Its methods may be called from many goroutines.
type Client struct {
	URL      string                 // mqtts://host:8883, wss://host:8443/mqtt or https://host:8443
	User     string                 // and Password: Hearthline's credentials
	Password string                 // of User
	Token    func() (string, error) // gives a JWT for each connection, instead of User and Password; nil for none
	TLS      *tls.Config            // what the server is known by, and the device's own certificate (mTLS); nil trusts the system's authorities
	ClientID string                 // of MQTT; unlike that of any other client. User, when it is empty
	Home     string                 // of readings that name none

	Dir         string        // folder of the outbox; "" keeps it in memory
	Sync        bool          // Send waits until the disk has it: readings then outlive a power cut, not only a crash
	OutboxBytes int64         // it may hold; then Send gives ErrFull
	BatchRows   int           // readings of one message, at most
	InFlight    int           // messages that wait for their acknowledgement at once
	AckTimeout  time.Duration // for an acknowledgement, before the connection is given up
	KeepAlive   time.Duration // between signs of life of an MQTT connection that has nothing to say

	// Command executes a command for a device, and gives why it could not. It is called once for each command's id, never after
	// its deadline, by up to 16 goroutines at once; ctx ends at the deadline. nil hears no commands. MQTT only.
	Command  func(ctx context.Context, c Command) error
	Commands []string // devices whose commands and deltas are heard; empty is all of Home
	// Delta makes a device what it is desired to be, as far as it can, and reports it ([Client.Report]). Of one device it is called one
	// after the other, with the last that came; ctx ends with Run. nil hears no deltas. MQTT only.
	Delta func(ctx context.Context, d Delta)

	Refused func(Refusal)                    // is told what can never be taken; nil writes it to Logger
	Logger  *slog.Logger                     // nil is silent
	backoff func(failures int) time.Duration // nil: fullJitter

	once   sync.Once
	box    *outbox
	opened error
	mu     sync.Mutex
	seq    map[series]int64
	done   *executed
	deltas deltas
	orders *pool.Pool      // commands that are being executed; they outlive a connection
	life   context.Context // ends a moment after Run's
}

// New gives a client with its defaults.
func New(url string) *Client {
	return &Client{URL: url, OutboxBytes: 64 << 20, BatchRows: 500, InFlight: 16, AckTimeout: 2 * time.Minute, KeepAlive: time.Minute}
}

// Reading is one thing that a device says.
type Reading struct {
	Home       string            // "": the client's
	Device     string            // unique within the home
	Metric     string            // temperature, power, state, …
	Value      float64           // the reading, where Text is ""
	Text       string            // a state that is no number: "open"
	Unit       string            // W, °C, …; may be ""
	Time       time.Time         // When it happened; zero: now
	Attributes map[string]string // what else is to be kept with it, at most 32
}

// Refusal is what was not taken, and never will be.
type Refusal struct {
	Readings int    // how many of the message; the reason says which, where it is known
	Home     string // of the message
	Device   string // of the message; "" where it was of several (HTTP)
	Reason   string
}

// Errors of [Client.Send].
var (
	ErrFull    = errors.New("the outbox is full: what is in it has not been acknowledged")
	ErrReading = errors.New("not a reading")
)

// seriesMax bounds the devices' metrics that are numbered: some 100 bytes each. Readings beyond it have no number, and may
// count twice after a lost acknowledgement.
const seriesMax = 200_000

type series struct{ home, device, metric string }

// row is a reading as it travels.
type row struct {
	Home       string            `json:"home,omitempty"`   // HTTP only
	Device     string            `json:"device,omitempty"` // HTTP only
	Metric     string            `json:"metric"`
	Value      *float64          `json:"value,omitempty"`
	Text       string            `json:"text,omitempty"`
	Unit       string            `json:"unit,omitempty"`
	Time       time.Time         `json:"time"`
	Seq        *int64            `json:"seq,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
}

// Send puts readings into the outbox, all or none. Those of one device in one call travel together: to send many at once is cheaper
// than to send many times.
func (c *Client) Send(ctx context.Context, readings ...Reading) error {
	if err := c.open(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	now := time.Now()
	var entries []*entry
	at := map[[2]string]*entry{}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range readings {
		r := readings[i]
		if r.Home == "" {
			r.Home = c.Home
		}
		if err := r.check(); err != nil {
			return fmt.Errorf("reading %d: %w", i, err)
		}
		where := [2]string{r.Home, r.Device}
		e := at[where]
		if e == nil || len(e.Rows) >= c.BatchRows {
			e = &entry{Home: r.Home, Device: r.Device}
			at[where] = e
			entries = append(entries, e)
		}
		e.Rows = append(e.Rows, c.rowOf(&r, now))
	}
	return c.box.put(entries)
}

func (r *Reading) check() error {
	for _, n := range []struct{ what, name string }{{"home", r.Home}, {"device", r.Device}, {"metric", r.Metric}} {
		if n.name == "" || len(n.name) > 128 || strings.ContainsAny(n.name, "/+#\x00\n") {
			return fmt.Errorf("%w: %s %.40q: want 1 to 128 bytes without / + #", ErrReading, n.what, n.name)
		}
	}
	if math.IsNaN(r.Value) || math.IsInf(r.Value, 0) {
		return fmt.Errorf("%w: value is not a finite number", ErrReading)
	}
	return nil
}

// rowOf numbers a reading. Callers hold mu.
func (c *Client) rowOf(r *Reading, now time.Time) row {
	out := row{Metric: r.Metric, Text: r.Text, Unit: r.Unit, Time: r.Time, Attributes: r.Attributes}
	if r.Text == "" {
		out.Value = &r.Value
	}
	if out.Time.IsZero() {
		out.Time = now
	}
	out.Time = out.Time.UTC()
	s := series{r.Home, r.Device, r.Metric}
	if n, known := c.seq[s]; known || len(c.seq) < seriesMax {
		n++
		c.seq[s] = n
		out.Seq = &n
	}
	return out
}

// Flush waits until everything that was sent before it has been acknowledged or refused.
func (c *Client) Flush(ctx context.Context) error {
	if err := c.open(); err != nil {
		return err
	}
	return c.box.wait(ctx)
}

// Waiting says how many readings the outbox holds.
func (c *Client) Waiting() int {
	if c.open() != nil {
		return 0
	}
	return c.box.waiting()
}

// open reads the outbox, once.
func (c *Client) open() error {
	c.once.Do(func() {
		if c.Logger == nil {
			c.Logger = slog.New(slog.DiscardHandler)
		}
		if c.ClientID == "" {
			c.ClientID = c.User
		}
		if c.ClientID == "" {
			c.ClientID = "hearthline-" + strings.ToLower(rand.Text()[:12])
		}
		if c.backoff == nil {
			c.backoff = fullJitter
		}
		c.seq = map[series]int64{}
		if c.box, c.opened = openOutbox(c.Dir, c.OutboxBytes, c.Sync); c.opened != nil {
			c.opened = fmt.Errorf("outbox: %w", c.opened)
			return
		}
		for _, e := range c.box.all() { // numbers go on behind those that wait
			for i := range e.Rows {
				if r := &e.Rows[i]; r.Seq != nil {
					s := series{e.Home, e.Device, r.Metric}
					c.seq[s] = max(c.seq[s], *r.Seq)
				}
			}
		}
		c.done, c.opened = openExecuted(c.Dir)
	})
	return c.opened
}

// sender is one connection.
type sender interface {
	// send hands a message over and waits for its acknowledgement. A refusal is for good; after any other error the message is
	// tried again, on another connection where lost says so.
	send(ctx context.Context, m *message) (refused *Refusal, err error)
	// gone is closed when the connection is lost.
	gone() <-chan struct{}
	close()
}

// Run keeps the connection and empties the outbox, until ctx ends; it then gives what is under way a moment, and returns nil.
// An error is one of the settings.
func (c *Client) Run(ctx context.Context) error {
	if err := c.open(); err != nil {
		return err
	}
	at, err := url.Parse(c.URL)
	if err != nil || at.Host == "" {
		return fmt.Errorf("URL %q: want mqtts://host:port, wss://host:port/path or https://host:port", c.URL)
	}
	connect := c.connectMQTT
	switch at.Scheme {
	case "mqtts", "wss":
	case "https":
		connect = c.connectHTTP
	default:
		return fmt.Errorf("URL %q: scheme %q; want mqtts, wss or https: what is sent is encrypted", c.URL, at.Scheme)
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	c.life, c.orders = life, pool.New().WithMaxGoroutines(commandsAtOnce)
	defer context.AfterFunc(ctx, func() { time.AfterFunc(finishing, end) })()
	defer c.box.close()
	defer c.orders.Wait()
	defer end()
	next, failures, hops := at, 0, 0
	for ctx.Err() == nil {
		worked, err := c.session(ctx, connect, next)
		next = at
		if ctx.Err() != nil {
			return nil
		}
		if failures++; worked {
			failures, hops = 0, 0
		}
		wait := c.backoff(failures)
		var other *elsewhere
		if hops++; errors.As(err, &other) && hops <= hopsMax {
			next, wait = other.at, c.backoff(0)
		} else {
			hops = 0
		}
		var later *retryLater
		if errors.As(err, &later) {
			wait = max(wait, later.after)
		}
		c.Logger.Warn("hearthline client: not connected; trying again", "after", wait.Round(time.Millisecond), "error", err)
		pause(ctx, wait)
	}
	return nil
}

// hopsMax is how often in a row servers may send a client on, before it begins again at its URL.
const hopsMax = 3

// session is one connection, from its beginning to its end. It says whether anything was acknowledged on it.
func (c *Client) session(ctx context.Context, connect func(context.Context, *url.URL) (sender, error), at *url.URL) (worked bool, err error) {
	s, err := connect(ctx, at)
	if err != nil {
		return false, err
	}
	defer s.close()
	return c.pump(ctx, s)
}

// errLost is a connection that ended.
var errLost = errors.New("the connection is lost")

// retryLater is a word of the other side's: not now.
type retryLater struct {
	after time.Duration
	why   string
}

func (e *retryLater) Error() string { return e.why }

// elsewhere is a word of the other side's: not here.
type elsewhere struct{ at *url.URL }

func (e *elsewhere) Error() string { return "another server is to be used: " + e.at.Host }

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// encode is a row's JSON. It cannot fail: numbers are finite, and there is nothing else in it that could.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
