package ingest

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"hearthline/ingest/identity"
	"hearthline/ingest/payload"
	"hearthline/ingest/reason"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/time/rate"
)

// verdictsMax is how many refused rows an answer lists; it counts them all.
const verdictsMax = 1000

// receipt is the answer to a request of which at least one row is durable.
type receipt struct {
	Accepted int       `json:"accepted"`
	Refused  int       `json:"refused"`
	Rows     []verdict `json:"rows,omitempty"`
}

// handler serves the HTTP door.
func (g *Gateway) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.count.requests.Add(1)
		if r.URL.Path != "/v1/telemetry" {
			problemOf(http.StatusNotFound, "not-found", "there is POST /v1/telemetry here, and nothing else").write(w)
			return
		}
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			problemOf(http.StatusMethodNotAllowed, "method", "want POST").write(w)
			return
		}
		got, p := g.telemetryRequest(w, r)
		if p != nil {
			p.write(w)
			return
		}
		writeJSON(w, http.StatusOK, "application/json", got)
	})
}

func (g *Gateway) telemetryRequest(w http.ResponseWriter, r *http.Request) (*receipt, *problem) {
	id, p := g.authenticate(w, r)
	if p != nil {
		return nil, p
	}
	if g.draining() {
		return nil, g.busy("the gateway is going down", reason.Draining)
	}
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	f, known := formatOf(media)
	if err != nil || !known {
		return nil, g.refuseRequest(http.StatusUnsupportedMediaType, "media-type", reason.Media, fmt.Sprintf("content type %.80q; %s", r.Header.Get("Content-Type"), mediaReason))
	}
	if no := id.MayTelemetry("", ""); no != nil {
		return nil, g.refuseRequest(http.StatusForbidden, "forbidden", no.Reason, no.Detail)
	}
	if wait := shortage(id.Messages, time.Now(), 1); wait > 0 {
		return nil, g.tooFast(wait)
	}
	if wait := shortage(id.Bytes, time.Now(), g.bytesLeast(r)); wait > 0 {
		return nil, g.tooFast(wait)
	}
	spend(id.Messages, time.Now(), 1) // also what is refused costs: it is work
	held := &allowance{g: g}
	defer held.release()
	body, p := g.body(w, r, held)
	if wait := shortage(id.Bytes, time.Now(), int(held.used)); wait > 0 && g.bytesLeast(r) > 1 {
		// It was decompressed for nothing. What is left of its rate is gone, else it could be so again and again.
		spend(id.Bytes, time.Now(), int(id.Bytes.Tokens()))
		return nil, g.tooFast(shortage(id.Bytes, time.Now(), int(held.used)))
	} else if wait > 0 {
		return nil, g.tooFast(wait)
	}
	spend(id.Bytes, time.Now(), int(held.used))
	if p != nil {
		return nil, p
	}
	return g.takeRows(r.Context(), id, f, body)
}

// authenticate reads Basic credentials, or Bearer with the same "user:password" as its token, plain.
func (g *Gateway) authenticate(w http.ResponseWriter, r *http.Request) (*identity.Identity, *problem) {
	unauthorized := func(detail string) *problem {
		w.Header().Set("WWW-Authenticate", `Basic realm="hearthline", charset="UTF-8"`)
		return problemOf(http.StatusUnauthorized, "credentials", detail)
	}
	user, password, ok := r.BasicAuth()
	if token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); bearer {
		user, password, ok = strings.Cut(token, ":")
	}
	if !ok {
		g.count.refused[reason.Credentials].Add(1)
		return nil, unauthorized("a user and a password are needed: Basic, or Bearer user:password")
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	id, err := g.door.Admit(user, password, host)
	switch {
	case errors.Is(err, identity.ErrAttempts):
		p := g.refuseRequest(http.StatusTooManyRequests, "attempts", reason.Credentials, err.Error())
		p.retryAfter = identity.FailureEvery
		return nil, p
	case errors.Is(err, identity.ErrBusy):
		return nil, g.busy(err.Error(), reason.Rate)
	case err != nil:
		return nil, unauthorized(err.Error())
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

// takeRows decodes a body, hands its good rows in and waits until they are durable.
func (g *Gateway) takeRows(ctx context.Context, id *identity.Identity, f payload.Format, body []byte) (*receipt, *problem) {
	d := decoders.Get().(*payload.Decoder)
	defer decoders.Put(d)
	s := &payload.Scope{Home: id.OnlyHome(), May: id.MayTelemetry, Now: g.clock.now(), RowsMax: g.HTTPRowsMax}
	rows, err := d.Decode(f, body, s)
	if err != nil {
		r := payload.Malformed(err)
		status := http.StatusBadRequest
		if r.Reason == reason.Payload {
			status = http.StatusRequestEntityTooLarge
		}
		return nil, g.refuseRequest(status, strings.ReplaceAll(r.Reason.String(), "_", "-"), r.Reason, r.Detail)
	}
	got := receipt{}
	got.Rows, got.Refused = verdicts(rows)
	g.countRows(rows)
	if got.Refused == len(rows) {
		return nil, g.allRefused(rows, &got)
	}
	if p := g.store(ctx, rows, len(body)); p != nil {
		return nil, p
	}
	g.count.messages.Add(1)
	got.Accepted = len(rows) - got.Refused
	return &got, nil
}

func verdicts(rows []payload.Row) (out []verdict, refused int) {
	for i := range rows {
		if r := rows[i].Refused; r != nil {
			if refused++; len(out) < verdictsMax {
				out = append(out, verdict{Row: i, Reason: r.Reason.String(), Detail: r.Detail})
			}
		}
	}
	return out, refused
}

// allRefused is the answer when no row can be used: 403 when all speak of what is not theirs, else 400.
func (g *Gateway) allRefused(rows []payload.Row, got *receipt) *problem {
	p := problemOf(http.StatusForbidden, "forbidden", "every row is of another home or device")
	for i := range rows {
		if r := rows[i].Refused.Reason; r != reason.Home && r != reason.Device {
			p = problemOf(http.StatusBadRequest, "rows", "no row can be used")
			break
		}
	}
	g.count.refused[rows[0].Refused.Reason].Add(1)
	p.Refused, p.Rows = got.Refused, got.Rows
	return p
}

// store hands rows in, a batch's worth at a time, and waits until all are durable, StoreTimeout at most. Rows handed
// in before it gave up may yet become durable: the sender repeats the request, and dedupe drops what is double.
func (g *Gateway) store(ctx context.Context, rows []payload.Row, bytes int) *problem {
	ctx, cancel := context.WithTimeout(ctx, g.StoreTimeout)
	defer cancel()
	parts := g.shares(rows, min(g.RowsMax, max(1, len(rows)*g.BytesMax/max(1, bytes))))
	t := &ticket{done: make(chan struct{})}
	t.left.Store(int64(len(parts)))
	for _, part := range parts {
		for {
			full := part.to.offer(part.rows, bytes*len(part.rows)/len(rows), t, 0)
			if full == nil {
				break
			}
			g.count.held.Add(1)
			select {
			case <-full:
			case <-ctx.Done():
				return g.busy("the log takes no more rows now", reason.BackPressure)
			case <-g.live.Done():
				return g.busy("the gateway is going down", reason.Draining)
			}
		}
	}
	select {
	case <-t.done:
		return nil
	case <-ctx.Done():
	case <-g.live.Done():
	}
	return g.busy("the log did not take the rows in time; send them again", reason.BackPressure)
}

// share is some of a request's rows, all for one partition.
type share struct {
	to   *gatherer
	rows []payload.Row
}

// shares gives the usable rows by partition, in their order, at most so many in one.
func (g *Gateway) shares(rows []payload.Row, rowsMax int) (out []share) {
	last := make(map[*gatherer]int) // the share in out that takes a partition's next row
	for i := range rows {
		if rows[i].Refused != nil {
			continue
		}
		to := g.homeOf(rows[i].Home)
		at, ok := last[to]
		if !ok || len(out[at].rows) == rowsMax {
			at, last[to] = len(out), len(out)
			out = append(out, share{to: to})
		}
		out[at].rows = append(out[at].rows, rows[i])
	}
	return out
}

// ticket waits for the chunks of one request.
type ticket struct {
	left atomic.Int64
	done chan struct{}
}

func (t *ticket) durable(uint64) bool {
	if t.left.Add(-1) == 0 {
		close(t.done)
	}
	return false
}

func (t *ticket) settle() {}

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
