package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/cenkalti/backoff/v5"

	"hearthline/flow"
)

// Write posts the rows, a request after the other. A request that the receiver refuses for good does not keep the others
// back: the error is a [*flow.BadRows] with its rows.
func (s *Sink) Write(ctx context.Context, r flow.Range, recs []arrow.Record) error {
	size := s.BatchMax
	if s.Single {
		size = 1
	}
	var bad flow.BadRows
	b := batch{stream: r.Stream, single: s.Single, id: func(first int64) string { return messageID(r, first) }}
	send := func() error {
		err := s.deliver(ctx, &b)
		if errors.Is(err, flow.ErrBad) {
			bad.AddAll(int(b.first), int(b.rows), err.Error())
			err = nil
		}
		b.next()
		return err
	}
	for _, rec := range recs {
		w := newRowWriter(rec)
		for i := range int(rec.NumRows()) {
			if err := b.add(w, i); err != nil {
				return fmt.Errorf("webhook: %s: %w", r, err)
			}
			if b.rows < int64(size) {
				continue
			}
			if err := send(); err != nil {
				return fmt.Errorf("webhook: %s: %w", r, err)
			}
		}
	}
	if b.rows > 0 {
		if err := send(); err != nil {
			return fmt.Errorf("webhook: %s: %w", r, err)
		}
	}
	s.stats.refused.Add(int64(len(bad.Rows)))
	if err := bad.Err(); err != nil {
		return fmt.Errorf("webhook: %s: %w", r, err)
	}
	return nil
}

// deliver logs and posts one batch.
func (s *Sink) deliver(ctx context.Context, b *batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	body := b.body()
	if s.Log {
		for _, row := range b.each() {
			s.Logger.LogAttrs(ctx, logLevel, b.stream, rowAttrs(row)...)
		}
	}
	if s.URL != "" {
		if err := s.post(ctx, b.id(b.first), body); err != nil {
			return err
		}
	}
	s.stats.rows.Add(b.rows)
	return nil
}

// post tries one request until it is taken, refused for good, or tried often enough.
func (s *Sink) post(ctx context.Context, id string, body []byte) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = min(200*time.Millisecond, s.RetryWaitMax), s.RetryWaitMax
	tries := 0
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		if tries++; tries > 1 {
			s.stats.retries.Add(1)
		}
		err := s.try(ctx, id, body)
		var later *laterError
		switch {
		case err == nil:
			return struct{}{}, nil
		case ctx.Err() != nil:
			return struct{}{}, backoff.Permanent(ctx.Err())
		case errors.Is(err, flow.ErrBad):
			return struct{}{}, backoff.Permanent(err)
		case tries == s.TriesMax:
			return struct{}{}, backoff.Permanent(fmt.Errorf("given up after %d tries: %w", tries, err))
		case errors.As(err, &later) && later.wait > 0:
			return struct{}{}, &backoff.RetryAfterError{Duration: min(later.wait, s.RetryWaitMax)}
		}
		return struct{}{}, err
	}, backoff.WithBackOff(wait), backoff.WithMaxTries(uint(s.TriesMax)), backoff.WithMaxElapsedTime(0))
	return err
}

// answerMax bounds what is read of an answer, bytes; answerShownMax what of it stands in an error.
const (
	answerMax      = 64 << 10
	answerShownMax = 200
)

func (s *Sink) try(ctx context.Context, id string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, bytes.NewReader(body))
	if err != nil {
		return s.hide(err)
	}
	for name, value := range s.Headers {
		req.Header.Set(name, value)
	}
	req.Header.Set("Content-Type", "application/json")
	now := s.Now()
	req.Header.Set("webhook-id", id)
	req.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
	if len(s.keys) > 0 {
		req.Header.Set("webhook-signature", sign(s.keys, id, now, body))
	}
	s.stats.requests.Add(1)
	res, err := s.client.Do(req)
	if err != nil {
		return s.hide(err)
	}
	answer, err := io.ReadAll(io.LimitReader(res.Body, answerMax))
	_ = res.Body.Close() // its status and what we want of it are read
	if res.StatusCode/100 == 2 {
		return nil // it has been taken, whether or not the answer came through
	}
	if err != nil {
		answer = nil
	}
	return s.judge(res, answer, now)
}

// judge says whose fault an answer is.
func (s *Sink) judge(res *http.Response, answer []byte, now time.Time) error {
	status := fmt.Sprintf("%s answered %d %s", res.Request.URL.Host, res.StatusCode, http.StatusText(res.StatusCode))
	if text := strings.TrimSpace(strings.ToValidUTF8(string(answer[:min(len(answer), answerShownMax)]), "")); text != "" {
		status += fmt.Sprintf(": %q", text)
	}
	switch code := res.StatusCode; {
	case code/100 == 3:
		return &laterError{text: status + " (redirects are not followed: set url to the new address)"}
	case code/100 == 4 && code != http.StatusRequestTimeout && code != http.StatusTooManyRequests:
		return flow.Badf("%s", status)
	}
	return &laterError{text: status, wait: retryAfter(res.Header.Get("Retry-After"), now)}
}

// laterError is an answer after which the request may be tried again.
type laterError struct {
	text string
	wait time.Duration // what the receiver asked for; 0 if it did not
}

func (e *laterError) Error() string { return e.text }

// retryAfter reads seconds or a date (RFC 9110, section 10.2.3); 0 where it is neither.
func retryAfter(v string, now time.Time) time.Duration {
	if n, err := strconv.Atoi(v); err == nil {
		return time.Duration(min(max(n, 0), 1<<30)) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(t.Sub(now), 0)
	}
	return 0
}

// hide takes the URL out of an error: with many services it is the secret. The host stays.
func (s *Sink) hide(err error) error {
	var ue *url.Error
	if !errors.As(err, &ue) {
		return err
	}
	host := "the receiver"
	if u, perr := url.Parse(s.URL); perr == nil {
		host = u.Host
	}
	return fmt.Errorf("post to %s: %w", host, ue.Err)
}
