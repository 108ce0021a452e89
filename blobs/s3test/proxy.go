package s3test

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/time/rate"
)

// Proxy stands between a client and a server, and breaks what passes as it is told.
type Proxy struct {
	URL string

	mu    sync.Mutex
	fault func(*http.Request) Fault
	seen  []string
	slow  *rate.Limiter
}

// Fault is what happens to one request. The zero Fault lets it pass.
type Fault struct {
	Status      int                   // answer so (with Code), without asking the server; the body is not taken
	Code        string                // of S3: SlowDown
	CutRequest  int64                 // cut the connection after so many bytes of the request's body
	CutResponse int64                 // cut it after so many bytes of the answer's body
	LoseAnswer  bool                  // let the server do it, then cut the connection
	Hang        <-chan struct{}       // neither take nor answer anything until it is closed
	Before      func(r *http.Request) // called before the server is asked
}

const burst = 64 << 10 // bytes that pass at once when a proxy is slow

// NewProxy starts a proxy before the server at to. It ends with the test.
func NewProxy(tb testing.TB, to string) *Proxy {
	tb.Helper()
	p, s := newProxy(tb, to)
	s.Start()
	p.URL = s.URL
	return p
}

// NewTLSProxy starts one that speaks TLS. ca is the file with the certificate to trust.
func NewTLSProxy(tb testing.TB, to string) (p *Proxy, ca string) {
	tb.Helper()
	p, s := newProxy(tb, to)
	s.StartTLS()
	p.URL = s.URL
	ca = filepath.Join(tb.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		tb.Fatal(err)
	}
	return p, ca
}

func newProxy(tb testing.TB, to string) (*Proxy, *httptest.Server) {
	tb.Helper()
	target, err := url.Parse(to)
	if err != nil {
		tb.Fatal(err)
	}
	p := &Proxy{slow: rate.NewLimiter(rate.Inf, burst)}
	back := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(back, w, r) }))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that a test has fail
	tb.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return p, s
}

// Break has every request broken as fault says from now on; nil lets all pass.
func (p *Proxy) Break(fault func(*http.Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = fault
}

// Slow lets so many bytes a second pass in requests' bodies, of all connections together; 0 is no limit.
func (p *Proxy) Slow(bytesPerSecond int) {
	limit := rate.Limit(bytesPerSecond)
	if bytesPerSecond == 0 {
		limit = rate.Inf
	}
	p.slow.SetLimit(limit)
}

// Requests gives the method and URL of the requests that came, and forgets them.
func (p *Proxy) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := p.seen
	p.seen = nil
	return seen
}

func (p *Proxy) serve(back http.Handler, w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.seen = append(p.seen, r.Method+" "+r.URL.RequestURI())
	fault := p.fault
	p.mu.Unlock()
	var f Fault
	if fault != nil {
		f = fault(r)
	}
	if f.Hang != nil {
		select {
		case <-f.Hang:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	}
	if f.Status != 0 {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(f.Status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>by the test's wish</Message></Error>", f.Code)
		return
	}
	r.Body = &passing{ctx: r.Context(), from: r.Body, slow: p.slow, left: f.CutRequest, cut: f.CutRequest > 0}
	if f.Before != nil {
		f.Before(r)
	}
	if f.LoseAnswer {
		back.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	}
	if f.CutResponse > 0 {
		w = &cutting{w, f.CutResponse}
	}
	back.ServeHTTP(w, r)
}

// passing is a request's body on its way.
type passing struct {
	ctx  context.Context
	from io.ReadCloser
	slow *rate.Limiter
	left int64
	cut  bool
}

func (b *passing) Read(p []byte) (int, error) {
	p = p[:min(len(p), burst)]
	if b.cut {
		if b.left == 0 {
			return 0, io.ErrUnexpectedEOF
		}
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.from.Read(p)
	b.left -= int64(n)
	if n > 0 && b.slow.Limit() != rate.Inf {
		if err := b.slow.WaitN(b.ctx, n); err != nil {
			return n, err
		}
	}
	return n, err
}

func (b *passing) Close() error { return b.from.Close() }

// cutting passes so many bytes of an answer, then cuts the connection.
type cutting struct {
	http.ResponseWriter
	left int64
}

func (c *cutting) Write(p []byte) (int, error) {
	if int64(len(p)) < c.left {
		c.left -= int64(len(p))
		return c.ResponseWriter.Write(p)
	}
	_, _ = c.ResponseWriter.Write(p[:c.left])
	_ = http.NewResponseController(c.ResponseWriter).Flush() // what was passed should arrive
	panic(http.ErrAbortHandler)
}

// Sometimes breaks one request in n, with each of the faults in turn.
func Sometimes(n int64, faults ...Fault) func(*http.Request) Fault {
	var seen atomic.Int64
	return func(*http.Request) Fault {
		i := seen.Add(1)
		if i%n != 0 {
			return Fault{}
		}
		return faults[i/n%int64(len(faults))]
	}
}
