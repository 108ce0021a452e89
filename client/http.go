package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/klauspost/compress/zstd"
)

// httpSender sends batches to POST /v1/telemetry.
type httpSender struct {
	c    *Client
	url  string
	http *http.Client
	zstd *zstd.Encoder
	end  chan struct{}
}

func (c *Client) connectHTTP(_ context.Context, at *url.URL) (sender, error) {
	if c.Command != nil || c.Delta != nil {
		return nil, errors.New("commands and deltas are heard over MQTT only: use mqtts:// or wss://, or set no Command and no Delta")
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, err
	}
	return &httpSender{c: c, url: at.JoinPath("/v1/telemetry").String(), zstd: z, end: make(chan struct{}),
		http: &http.Client{Timeout: c.AckTimeout, Transport: &http.Transport{TLSClientConfig: c.tlsConfig(at), ForceAttemptHTTP2: true, MaxIdleConnsPerHost: c.InFlight}}}, nil
}

func (s *httpSender) gone() <-chan struct{} { return s.end }

func (s *httpSender) close() { s.http.CloseIdleConnections() }

// answer is a receipt or a problem document.
type answer struct {
	Refused int    `json:"refused"`
	Detail  string `json:"detail"`
	Rows    []struct {
		Row    int    `json:"row"`
		Reason string `json:"reason"`
		Detail string `json:"detail"`
	} `json:"rows"`
}

// answerBytesMax bounds what of an answer is read.
const answerBytesMax = 4 << 20

// send posts a message under a key that stays its own, so that the gateway which has it knows it again.
func (s *httpSender) send(ctx context.Context, m *message) (*Refusal, error) {
	if m.key == "" {
		m.key = rand.Text()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(s.zstd.EncodeAll(linesOf(m), nil)))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	req.Header.Set("Content-Encoding", "zstd")
	req.Header.Set("Idempotency-Key", `"`+m.key+`"`)
	if s.c.Token != nil {
		token, err := s.c.Token()
		if err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
	} else if s.c.User != "" {
		req.SetBasicAuth(s.c.User, s.c.Password)
	}
	res, err := s.http.Do(req)
	if err != nil {
		return nil, &retryLater{why: err.Error()}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, answerBytesMax))
	if err != nil {
		return nil, &retryLater{why: err.Error()}
	}
	return verdictOf(res, body, m)
}

// verdictOf says what an answer means: taken, some or all of it refused for good, or not now.
func verdictOf(res *http.Response, body []byte, m *message) (*Refusal, error) {
	var a answer
	_ = json.Unmarshal(body, &a) // of what is no JSON the status says enough
	why := fmt.Sprintf("%s: %s", res.Status, a.Detail)
	for i, r := range a.Rows {
		if i == 5 {
			why += " …"
			break
		}
		why += fmt.Sprintf("; row %d: %s: %s", r.Row, r.Reason, r.Detail)
	}
	switch code := res.StatusCode; {
	case code/100 == 2 && a.Refused == 0:
		return nil, nil
	case code/100 == 2:
		return &Refusal{Readings: a.Refused, Reason: why}, nil
	case code == http.StatusBadRequest, code == http.StatusForbidden, code == http.StatusRequestEntityTooLarge, code == http.StatusUnprocessableEntity, code == http.StatusUnsupportedMediaType:
		return &Refusal{Readings: m.rows, Reason: why}, nil
	}
	after, _ := strconv.Atoi(res.Header.Get("Retry-After"))
	return nil, &retryLater{after: min(time.Duration(after)*time.Second, backoffMost), why: why}
}
