package ingest

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"

	"hearthline/ingest/identity"
	"hearthline/ingest/payload"
	"hearthline/ingest/reason"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/time/rate"
)

// handler serves the HTTP door.
func (g *Gateway) handler() http.Handler {
	routes := http.NewServeMux()
	route := func(method, path string, serve http.HandlerFunc) {
		routes.HandleFunc(path, g.counted(path, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != method {
				w.Header().Set("Allow", method)
				problemOf(http.StatusMethodNotAllowed, "method", "want "+method).write(w)
				return
			}
			serve(w, r)
		}))
	}
	route(http.MethodPost, "/v1/telemetry", answered(g.telemetryRequest))
	route(http.MethodPost, "/v1/hooks/{name}", answered(g.hookRequest))
	routes.HandleFunc("GET "+mqttPath, g.serveWebSocket)
	g.sharedRoutes(routes)
	routes.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		problemOf(http.StatusNotFound, "not-found", "there are POST /v1/telemetry, POST /v1/hooks/{name}, commands and shadow of /v1/devices/{device}, commands, shadows and live of /v1/homes/{home}, and MQTT over WebSocket at /mqtt here, and nothing else").write(w)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.count.requests.Add(1)
		routes.ServeHTTP(w, r)
	})
}

// answered writes what was made of rows that came in.
func answered(serve func(http.ResponseWriter, *http.Request) (*receipt, *problem)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		got, p := serve(w, r)
		if p != nil {
			p.write(w)
			return
		}
		if got.replayed {
			w.Header().Set("Idempotency-Replayed", "true")
		}
		writeJSON(w, http.StatusOK, "application/json", got)
	}
}

// sender is whom a request speaks for: an identity, or a webhook.
type sender struct {
	name            string // unlike that of any other
	scope           payload.Scope
	messages, bytes *rate.Limiter
}

func (g *Gateway) senderOf(id *identity.Identity) *sender {
	return &sender{name: "user " + id.Subject, scope: payload.Scope{Home: id.OnlyHome(), May: id.MayTelemetry}, messages: id.Messages, bytes: id.Bytes}
}

func (g *Gateway) telemetryRequest(w http.ResponseWriter, r *http.Request) (*receipt, *problem) {
	id, p := g.authenticate(w, r)
	if p != nil {
		return nil, p
	}
	media, p := g.mayTake(r)
	if p != nil {
		return nil, p
	}
	if no := id.MayTelemetry("", ""); no != nil {
		return nil, g.refuseRequest(http.StatusForbidden, "forbidden", no.Reason, no.Detail)
	}
	key, err := idempotencyKey(r.Header)
	if err != nil {
		return nil, g.refuseRequest(http.StatusBadRequest, "idempotency-key", reason.Repeated, err.Error())
	}
	r, done := g.whileValid(w, r, id)
	defer done()
	from := g.senderOf(id)
	held := &allowance{g: g}
	defer held.release()
	body, p := g.paidBody(w, r, from, held)
	if err := id.Gone(g.Now()); err != nil {
		return nil, g.refuseRequest(http.StatusUnauthorized, "credentials", reason.Credentials, err.Error())
	}
	if p != nil {
		return nil, p
	}
	return g.takeRequest(r, from, media, key, body)
}

// mayTake looks at what a request says of itself, before anything of it is read.
func (g *Gateway) mayTake(r *http.Request) (media string, p *problem) {
	if g.draining() {
		return "", g.busy("the gateway is going down", reason.Draining)
	}
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if _, known := formatOf(media); err != nil || !known && !isEvents(media, r.Header) {
		return "", g.refuseRequest(http.StatusUnsupportedMediaType, "media-type", reason.Media, fmt.Sprintf("content type %.80q; %s", r.Header.Get("Content-Type"), mediaReason))
	}
	return media, nil
}

// paidBody reads a body, and takes what it costs from the sender's rates.
func (g *Gateway) paidBody(w http.ResponseWriter, r *http.Request, from *sender, held *allowance) ([]byte, *problem) {
	if wait := shortage(from.messages, time.Now(), 1); wait > 0 {
		return nil, g.tooFast(wait)
	}
	if wait := shortage(from.bytes, time.Now(), g.bytesLeast(r)); wait > 0 {
		return nil, g.tooFast(wait)
	}
	spend(from.messages, time.Now(), 1) // also what is refused costs: it is work
	body, p := g.body(w, r, held)
	if wait := shortage(from.bytes, time.Now(), int(held.used)); wait > 0 && g.bytesLeast(r) > 1 {
		// It was decompressed for nothing. What is left of its rate is gone, else it could be so again and again.
		spend(from.bytes, time.Now(), int(from.bytes.Tokens()))
		return nil, g.tooFast(shortage(from.bytes, time.Now(), int(held.used)))
	} else if wait > 0 {
		return nil, g.tooFast(wait)
	}
	spend(from.bytes, time.Now(), int(held.used))
	return body, p
}

// authenticate finds out whom a request speaks for: by Basic, by Bearer with user:password, a token or an API key, by X-API-Key, or by the
// client's certificate.
func (g *Gateway) authenticate(w http.ResponseWriter, r *http.Request) (*identity.Identity, *problem) {
	p := identity.Proof{Address: r.RemoteAddr}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		p.Address = host
	}
	if r.TLS != nil {
		p.Chains = r.TLS.VerifiedChains
	}
	p.User, p.Password, _ = r.BasicAuth()
	if token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); bearer {
		var ok bool
		if p.User, p.Password, ok = strings.Cut(token, ":"); !ok {
			p.User, p.Bearer = "", token
		}
	} else if p.Password == "" {
		p.Bearer = r.Header.Get("X-API-Key")
	}
	id, err := g.door.Admit(r.Context(), p)
	switch {
	case errors.Is(err, identity.ErrAttempts):
		p := g.refuseRequest(http.StatusTooManyRequests, "attempts", reason.Credentials, err.Error())
		p.retryAfter = identity.FailureEvery
		return nil, p
	case errors.Is(err, identity.ErrBusy):
		return nil, g.busy(err.Error(), reason.Rate)
	case err != nil:
		w.Header().Add("WWW-Authenticate", `Basic realm="hearthline", charset="UTF-8"`)
		w.Header().Add("WWW-Authenticate", `Bearer realm="hearthline"`)
		return nil, problemOf(http.StatusUnauthorized, "credentials", err.Error())
	}
	return id, nil
}

// bytesLeast is how many bytes of its rate a user must have left for a request to be read at all. One that is compressed
// takes work before its size is known.
func (g *Gateway) bytesLeast(r *http.Request) int {
	if e := r.Header.Get("Content-Encoding"); e == "" || strings.EqualFold(e, "identity") {
		return 1
	}
	return max(1, g.DecompressedBytesMax/8)
}

// body reads the request's body, decompressed, within the limits of both.
func (g *Gateway) body(w http.ResponseWriter, r *http.Request, held *allowance) ([]byte, *problem) {
	if r.ContentLength > int64(g.HTTPPayloadBytesMax) {
		return nil, g.tooLarge(fmt.Sprintf("a body of %d bytes; at most %d", r.ContentLength, g.HTTPPayloadBytesMax))
	}
	var in io.Reader = http.MaxBytesReader(w, r.Body, int64(g.HTTPPayloadBytesMax))
	limit := g.HTTPPayloadBytesMax
	broken := func(err error) *problem {
		return g.refuseRequest(http.StatusBadRequest, "body", reason.Malformed, fmt.Sprintf("the body cannot be read: %v", err))
	}
	switch encoding := strings.ToLower(r.Header.Get("Content-Encoding")); encoding {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, broken(err)
		}
		in, limit = z, g.DecompressedBytesMax
	case "zstd":
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, broken(err)
		}
		defer z.Close()
		in, limit = z, g.DecompressedBytesMax
	default:
		return nil, g.refuseRequest(http.StatusUnsupportedMediaType, "content-encoding", reason.Media, fmt.Sprintf("content encoding %.40q; want gzip, zstd or none", encoding))
	}
	data, err := io.ReadAll(io.LimitReader(held.over(in), int64(limit)+1))
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over) || len(data) > limit:
		return nil, g.tooLarge(fmt.Sprintf("more than %d bytes (%d decompressed)", g.HTTPPayloadBytesMax, g.DecompressedBytesMax))
	case errors.Is(err, errAllowance):
		return nil, g.busy("too many requests are under way; send it again", reason.BackPressure)
	case err != nil:
		return nil, broken(err)
	case len(data) == 0:
		return nil, g.refuseRequest(http.StatusBadRequest, "body", reason.Malformed, "the body is empty")
	}
	return data, nil
}

func (g *Gateway) refuseRequest(status int, name string, cause reason.Reason, detail string) *problem {
	g.count.refused[cause].Add(1)
	return problemOf(status, name, detail)
}

func (g *Gateway) tooLarge(detail string) *problem {
	return g.refuseRequest(http.StatusRequestEntityTooLarge, "too-large", reason.Payload, detail)
}

func (g *Gateway) tooFast(wait time.Duration) *problem {
	p := g.refuseRequest(http.StatusTooManyRequests, "rate", reason.Rate, "over the rate of these credentials")
	p.retryAfter = wait
	return p
}

func (g *Gateway) busy(detail string, cause reason.Reason) *problem {
	p := g.refuseRequest(http.StatusServiceUnavailable, "unavailable", cause, detail)
	p.retryAfter = 5 * time.Second
	return p
}

// shortage says how long until a limiter has n tokens; what exceeds its burst waits for a full bucket.
func shortage(lim *rate.Limiter, now time.Time, n int) time.Duration {
	if lim.Limit() == rate.Inf {
		return 0
	}
	missing := float64(min(n, lim.Burst())) - lim.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	return max(time.Millisecond, time.Duration(missing/float64(lim.Limit())*float64(time.Second)))
}

// spend takes n tokens, as many as the bucket can hold.
func spend(lim *rate.Limiter, now time.Time, n int) { lim.AllowN(now, min(n, lim.Burst())) }
