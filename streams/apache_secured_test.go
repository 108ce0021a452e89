package streams_test

import (
	"context"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hearthline/flow"
	"hearthline/streams"
	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
	"hearthline/streams/streamstest"
)

// TestSecured: a broker that asks for TLS, a login and rights. With the rights that docs/operations.md lists the contract
// holds; whatever is wrong is said, with what to do, at once and not after minutes of trying again.
func TestSecured(t *testing.T) {
	t.Parallel() // most of it is waiting
	c := apache.New()
	c.Security = &apache.Security{TLS: true, Users: map[string]string{"hearthline": `pass"word\1`, "guest": "guest-password"}}
	addrs := apachetest.Start(t, c)
	allow := func(user string, rights ...string) {
		t.Helper()
		if err := c.Allow(streamstest.Context(t), user, rights...); err != nil {
			t.Fatal(err)
		}
	}
	secrets := secretFiles(t, c.Security.Users)
	as := func(user, mechanism string) func(*streams.Config) {
		return func(cfg *streams.Config) {
			cfg.TLS = &streams.TLS{CA: c.CA()}
			cfg.SASL = &streams.SASL{Mechanism: mechanism, User: user, PasswordFile: filepath.Join(secrets, user)}
		}
	}
	allow("hearthline", "topic stream-* create,read,write", "topic hearthline.schemas create,read,write", "group group-* read", "topic no-such-stream read,write")
	cl := streamstest.Cluster{Brokers: addrs, Config: as("hearthline", "SCRAM-SHA-512")}
	t.Run("contract", func(t *testing.T) { streamstest.Contract(t, cl) })
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		streamstest.Cluster{Brokers: addrs, Config: as("hearthline", mechanism)}.Dial(t)
	}
	t.Run("the way in", func(t *testing.T) { wayIn(t, addrs, as("hearthline", "SCRAM-SHA-512"), secrets) })

	owner := cl.Dial(t)
	stream, shown := streamstest.Stream(t, owner, 1), streamstest.Stream(t, owner, 1)
	streamstest.Publish(t, owner.NewProducer(), shown, 0, 1, 0)
	allow("guest", "topic "+shown+" describe", "topic hearthline.schemas read", "topic free read", "group free read")
	guest := streamstest.Cluster{Brokers: addrs, Config: as("guest", "SCRAM-SHA-256")}.Dial(t)
	t.Run("no right to write", func(t *testing.T) {
		wrong{"anything", publishing(guest, shown), []string{"Cluster Authorization Failed", "Write on any topic", shown}}.run(t)
	})
	allow("guest", "topic free write")
	t.Run("rights", func(t *testing.T) { rights(t, guest, stream, shown) })
}

// secretFiles holds each user's password in a file of its name.
func secretFiles(t *testing.T, users map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for user, password := range users {
		if err := os.WriteFile(filepath.Join(dir, user), []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// quickly is far less than what is waited for a broker that may come back, and much on a busy machine.
const quickly = 20 * time.Second

// wrong is one thing that is wrong, and what must be said of it.
type wrong struct {
	name string
	do   func(context.Context) error
	want []string
}

func (w wrong) run(t *testing.T) {
	t.Run(w.name, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(streamstest.Context(t), quickly)
		defer cancel()
		err := w.do(ctx)
		if err == nil {
			t.Fatal("it went well")
		}
		t.Log(err)
		for _, want := range w.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("want it to say %q", want)
			}
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Error("it was tried again and again")
		}
		if !streams.Permanent(err) {
			t.Error("it is not Permanent: whoever starts this would try again for minutes")
		}
		if strings.Contains(err.Error(), `pass"word`) {
			t.Error("the password stands in the error")
		}
	})
}

// dialing is a client whose settings are good but for what change makes of them.
func dialing(brokers []string, good, change func(*streams.Config)) func(context.Context) error {
	return func(ctx context.Context) error {
		cfg := streams.New()
		cfg.Brokers = brokers
		good(&cfg)
		change(&cfg)
		c, err := streams.Dial(ctx, cfg, slog.New(slog.DiscardHandler))
		if err == nil {
			_ = c.Close()
		}
		return err
	}
}

// wayIn: settings that do not fit the broker.
func wayIn(t *testing.T, addrs []string, good func(*streams.Config), secrets string) {
	stranger := strangerCA(t)
	to := func(change func(*streams.Config)) func(context.Context) error { return dialing(addrs, good, change) }
	for _, w := range []wrong{
		{"another password", to(func(c *streams.Config) { c.SASL.PasswordFile = filepath.Join(secrets, "guest") }), []string{"refuses the login of user hearthline by SCRAM-SHA-512", "check user, password"}},
		{"another password, plain", to(func(c *streams.Config) {
			c.SASL.PasswordFile, c.SASL.Mechanism = filepath.Join(secrets, "guest"), "PLAIN"
		}), []string{"refuses the login of user hearthline by PLAIN"}},
		{"nobody's name", to(func(c *streams.Config) { c.SASL.User = "nobody" }), []string{"refuses the login of user nobody"}},
		{"no login", to(func(c *streams.Config) { c.SASL = nil }), []string{"set kafka.sasl"}},
		{"no password", to(func(c *streams.Config) { c.SASL.PasswordFile, c.SASL.PasswordEnv = "", "NO_SUCH_VARIABLE" }), []string{"the variable NO_SUCH_VARIABLE is not set"}},
		{"no TLS", to(func(c *streams.Config) { c.TLS = nil }), []string{"speaks TLS", "set kafka.tls"}},
		{"an authority of this system", to(func(c *streams.Config) { c.TLS.CA = "" }), []string{"not trusted", "set kafka.tls.ca"}},
		{"another authority", to(func(c *streams.Config) { c.TLS.CA = stranger }), []string{"not trusted", "set kafka.tls.ca"}},
		{"another name", to(func(c *streams.Config) { c.TLS.ServerName = "elsewhere.example" }), []string{"another name", "set kafka.tls.server_name"}},
		{"no such file", to(func(c *streams.Config) { c.TLS.CA = "/no/such/file" }), []string{"tls.ca", "no such file"}},
		{"no certificate in it", to(func(c *streams.Config) { c.TLS.CA = filepath.Join(secrets, "guest") }), []string{"holds no certificate"}},
		{"TLS to a broker without", dialing([]string{start(t, nil)}, good, func(c *streams.Config) { c.SASL = nil }), []string{"does not speak TLS", "remove kafka.tls"}},
	} {
		w.run(t)
	}
}

// strangerCA is the file of an authority that signed nothing here.
func strangerCA(t *testing.T) string {
	t.Helper()
	server := httptest.NewTLSServer(nil) // has one
	defer server.Close()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// publishing publishes a heartbeat.
func publishing(c *streams.Client, stream string) func(context.Context) error {
	return func(ctx context.Context) error {
		beat := flow.Batch{Kind: flow.KindHeartbeat, Lineage: flow.Lineage{Source: flow.Source{Producer: "guest"}}}
		_, err := c.NewProducer().Publish(ctx, stream, 0, beat)
		return err
	}
}

// rights: what the user may not do, of the three rights on a stream, Read on a group, and Create.
func rights(t *testing.T, guest *streams.Client, hidden, shown string) {
	read := func(stream string) func(context.Context) error {
		return func(ctx context.Context) error {
			r := guest.NewReader(stream, 0, 0)
			defer r.Close()
			_, err := r.Next(ctx)
			return err
		}
	}
	ensure := func(name string) func(context.Context) error {
		return func(ctx context.Context) error {
			return guest.Ensure(ctx, []streams.Spec{{Name: name, Partitions: 3}})
		}
	}
	join := func(group, stream string) func(context.Context) error {
		return func(ctx context.Context) error {
			return guest.Join(ctx, streams.GroupConfig{ID: group, Streams: []string{stream}}, func(context.Context, *streams.Assignment) error {
				return errors.New("joined")
			})
		}
	}
	topic := []string{"Topic Authorization Failed", "lacks a right on the topic"}
	for _, w := range []wrong{
		{"publish to what is hidden", publishing(guest, hidden), append(slices.Clone(topic), hidden)},
		{"publish to what may only be described", publishing(guest, shown), append(slices.Clone(topic), shown)},
		{"read what is hidden", read(hidden), append(slices.Clone(topic), hidden)},
		{"read what may only be described", read(shown), append(slices.Clone(topic), shown)},
		{"ensure what is hidden", ensure(hidden), append(slices.Clone(topic), hidden)},
		{"create", ensure("free"), append(slices.Clone(topic), "create stream free (3 partitions)", "Create to make it")},
		{"a group that is another's", join("group-x", shown), []string{"Group Authorization Failed", "Read on the consumer group", "group-x"}},
		{"commits of another's group", func(ctx context.Context) error { _, err := guest.Committed(ctx, "group-x", shown); return err }, []string{"Group Authorization Failed", "group-x"}},
		{"read what is not there", read("free"), []string{"no such stream", "free"}},
		{"join a group of what is not there", join("free", "free"), []string{"no such stream", "free"}},
	} {
		w.run(t)
	}
}

// TestClientCertificates: a broker that knows its clients by their certificates.
func TestClientCertificates(t *testing.T) {
	t.Parallel() // most of it is waiting
	c := apache.New()
	c.Security = &apache.Security{TLS: true, ClientCertificates: true}
	addrs := apachetest.Start(t, c)
	certificate, key, err := c.Certificate("gateway")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Allow(streamstest.Context(t), "CN=gateway", "topic stream-* create,read,write", "topic hearthline.schemas create,read,write"); err != nil {
		t.Fatal(err)
	}
	good := func(cfg *streams.Config) {
		cfg.TLS = &streams.TLS{CA: c.CA(), Certificate: certificate, Key: key}
	}
	client := streamstest.Cluster{Brokers: addrs, Config: good}.Dial(t)
	stream := streamstest.Stream(t, client, 1)
	streamstest.Publish(t, client.NewProducer(), stream, 0, 3, 0, 1)
	if got := streamstest.Lineages(t, client, stream, 0); len(got) != 2 {
		t.Errorf("the stream holds %v", got)
	}
	secrets := secretFiles(t, map[string]string{"x": "y"})
	for _, w := range []wrong{
		{"no certificate", dialing(addrs, good, func(c *streams.Config) { c.TLS.Certificate, c.TLS.Key = "", "" }), []string{"asks for a certificate", "set kafka.tls.certificate"}},
		{"a login where none is asked for", dialing(addrs, good, func(c *streams.Config) {
			c.SASL = &streams.SASL{Mechanism: "PLAIN", User: "x", PasswordFile: filepath.Join(secrets, "x")}
		}), []string{"asks for no login", "remove kafka.sasl"}},
	} {
		w.run(t)
	}
}
