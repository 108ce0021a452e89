// Package webhook posts rows, alerts above all, to a URL as JSON, signed after the Standard Webhooks specification
// (https://www.standardwebhooks.com, version 1).
//
// Each request carries a webhook-id that follows from the range and the rows alone. After a crash the same rows may be
// posted again, under the same ids: a receiver that drops the ids it has seen gets every row once. (A change of batch_max
// in just that moment gives other ids; the rows' own ids, such as an alert's, stay.)
//
// A laptop has no receiver: log: true writes the rows to the program's log instead, or as well.
package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// Sink posts rows. Its fields are set before Open and not changed after.
type Sink struct {
	// URL to post to, http or https. Certificates are verified, redirects are not followed. It may be empty where Log
	// is set.
	URL string `yaml:"url"`
	// Log writes each row to the log, at level info. It is for a look, not for keeping: rows that are posted again
	// are logged again.
	Log bool `yaml:"log"`
	// Headers are sent with each request, such as Authorization. Secrets among them must come from the environment: ${NAME}.
	Headers map[string]string `yaml:"headers" secret:"names"`
	// Secrets sign each request, each as "whsec_" and base64 of 24 to 64 bytes. The receiver needs one of them:
	// put the new one first while it changes. They must come from the environment: ${NAME}. None: requests are not signed.
	Secrets []string `yaml:"secrets" secret:"true"`
	// BatchMax is the largest number of rows of a request, whose body is a JSON array of objects.
	BatchMax int `yaml:"batch_max"`
	// Single posts each row on its own, as a JSON object.
	Single bool `yaml:"single"`
	// Timeout of one request, answer included.
	Timeout time.Duration `yaml:"timeout"`
	// TriesMax is how often a request is tried before Write gives up; the runtime then tries the range again.
	TriesMax int `yaml:"tries_max"`
	// RetryWaitMax is the longest wait between tries, also where the receiver asks for longer (Retry-After).
	RetryWaitMax time.Duration `yaml:"retry_wait_max"`
	// FlushRows and FlushWait say when a range is cut. Somebody waits for an alert, so the wait is short.
	FlushRows int64         `yaml:"flush_rows"`
	FlushWait time.Duration `yaml:"flush_wait"`

	// Logger is where Log writes.
	Logger *slog.Logger `yaml:"-"`
	// Transport sends the requests; nil is one that verifies TLS 1.2 and up.
	Transport http.RoundTripper `yaml:"-"`
	// Now is the clock of the signatures; nil is the system's.
	Now func() time.Time `yaml:"-"`

	client *http.Client
	keys   [][]byte
	stats  struct{ requests, retries, rows, refused atomic.Int64 }
}

// New gives a Sink with the defaults, which posts nowhere yet.
func New() *Sink {
	return &Sink{
		BatchMax: 100, Timeout: 10 * time.Second, TriesMax: 4, RetryWaitMax: 30 * time.Second,
		FlushRows: 1000, FlushWait: 200 * time.Millisecond,
	}
}

var _ interface {
	flow.Sink
	flow.Opener
	flow.Closer
	flow.Flushing
	flow.Checker
} = (*Sink)(nil)

// idleConnectionsMax bounds the open connections to the receiver that wait for work.
const idleConnectionsMax = 8

// Open checks the settings. It does not call the receiver.
func (s *Sink) Open(context.Context) error {
	if err := s.checkSettings(); err != nil {
		return err
	}
	if s.Log && s.Logger == nil {
		return errors.New("webhook sink: log is set, but the program gave no logger")
	}
	s.keys, _ = decodeSecrets(s.Secrets)
	if s.Now == nil {
		s.Now = time.Now
	}
	transport := s.Transport
	if transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		t.MaxIdleConnsPerHost = idleConnectionsMax
		transport = t
	}
	s.client = &http.Client{
		Transport: transport,
		Timeout:   s.Timeout,
		// A redirect would take headers and rows to somebody else than the settings say.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return nil
}

// Close closes idle connections.
func (s *Sink) Close() error {
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
	return nil
}

// Flush is what the settings say.
func (s *Sink) Flush() (rows int64, wait time.Duration) { return s.FlushRows, s.FlushWait }

// Check says whether the settings make sense, and whether the rows can be written as JSON.
func (s *Sink) Check(stream string, schema *arrow.Schema) error {
	if err := s.checkSettings(); err != nil {
		return err
	}
	for _, f := range schema.Fields() {
		if err := checkType(f.Type); err != nil {
			return fmt.Errorf("webhook sink: stream %q: column %q: %w", stream, f.Name, err)
		}
	}
	return nil
}

func (s *Sink) checkSettings() error {
	_, secretErr := decodeSecrets(s.Secrets)
	var err error
	switch {
	case s.URL == "" && !s.Log:
		err = errors.New("setting url: give the address to post to; or set log: true to see the rows in the log instead")
	case s.BatchMax < 1:
		err = fmt.Errorf("setting batch_max: %d; want at least 1", s.BatchMax)
	case s.Timeout <= 0:
		err = fmt.Errorf("setting timeout: %s; want more than 0s", s.Timeout)
	case s.TriesMax < 1:
		err = fmt.Errorf("setting tries_max: %d; want at least 1", s.TriesMax)
	case s.RetryWaitMax <= 0:
		err = fmt.Errorf("setting retry_wait_max: %s; want more than 0s", s.RetryWaitMax)
	case s.FlushRows < 1 || s.FlushWait <= 0:
		err = fmt.Errorf("settings flush_rows, flush_wait: %d, %s; want at least 1 and more than 0s", s.FlushRows, s.FlushWait)
	case secretErr != nil:
		err = secretErr
	default:
		err = errors.Join(s.checkURL(), s.checkHeaders())
	}
	if err != nil {
		return fmt.Errorf("webhook sink: %w", err)
	}
	return nil
}

// checkURL keeps the URL itself out of its errors: with many services it is the secret.
func (s *Sink) checkURL() error {
	if s.URL == "" {
		return nil
	}
	u, err := url.Parse(s.URL)
	switch {
	case err != nil:
		return errors.New("setting url: it is not a URL")
	case u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("setting url: scheme %q; want https or http", u.Scheme)
	case u.Host == "":
		return errors.New("setting url: it names no host")
	case u.User != nil:
		return errors.New("setting url: it has a user or password in it; use headers: {Authorization: …}")
	}
	return nil
}

func (s *Sink) checkHeaders() error {
	for name, value := range s.Headers {
		lower := strings.ToLower(name)
		switch {
		case strings.HasPrefix(lower, "webhook-") || lower == "content-type" || lower == "content-length" || lower == "host":
			return fmt.Errorf("setting headers: %s is set by the sink itself", name)
		case name == "" || strings.ContainsFunc(name, notToken) || strings.ContainsAny(value, "\r\n\x00"):
			return fmt.Errorf("setting headers: %q is not a header, or its value has a line break", name)
		}
	}
	return nil
}

// notToken: RFC 9110, section 5.6.2.
func notToken(r rune) bool {
	return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
}

// Stats is what a sink has done since it was opened.
type Stats struct {
	Requests int64 // sent, retries included
	Retries  int64
	Rows     int64 // accepted by the receiver, or logged
	Refused  int64 // rows that the receiver will never take
}

// Stats may be called at any time.
func (s *Sink) Stats() Stats {
	return Stats{s.stats.requests.Load(), s.stats.retries.Load(), s.stats.rows.Load(), s.stats.refused.Load()}
}
