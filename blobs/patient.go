package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Patient is a Store that does again what failed, for a while: for those who would otherwise end with the first minute
// in which a server is away. A Put is repeated where its source can be read again (an [io.Seeker]).
type Patient struct {
	Store
	For time.Duration // how long, from the first failure on
	Log *slog.Logger  // nil: nobody is told
}

// Pauses between two tries of a Patient.
const (
	patientPause    = 200 * time.Millisecond
	patientPauseMax = 5 * time.Second
)

func (p Patient) Put(ctx context.Context, name string, r io.Reader) error {
	s, ok := r.(io.Seeker)
	if !ok {
		return p.Store.Put(ctx, name, r)
	}
	start, err := s.Seek(0, io.SeekCurrent)
	if err != nil {
		return fmt.Errorf("put %q: %w", name, err)
	}
	_, err = again(ctx, p, "put "+name, func() (struct{}, error) {
		if _, err := s.Seek(start, io.SeekStart); err != nil {
			return struct{}{}, backoff.Permanent(fmt.Errorf("put %q: %w", name, err))
		}
		return struct{}{}, p.Store.Put(ctx, name, r)
	})
	return err
}

func (p Patient) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	return again(ctx, p, "get "+name, func() (io.ReadCloser, error) { return p.Store.Get(ctx, name) })
}

func (p Patient) List(ctx context.Context, prefix string) ([]Info, error) {
	return again(ctx, p, "list "+prefix, func() ([]Info, error) { return p.Store.List(ctx, prefix) })
}

func (p Patient) Delete(ctx context.Context, name string) error {
	_, err := again(ctx, p, "delete "+name, func() (struct{}, error) { return struct{}{}, p.Store.Delete(ctx, name) })
	return err
}

// Close closes the store, where it can be closed.
func (p Patient) Close() error {
	if c, ok := p.Store.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

func again[T any](ctx context.Context, p Patient, what string, f func() (T, error)) (T, error) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = patientPause, patientPauseMax
	var last error
	v, err := backoff.Retry(ctx, func() (T, error) {
		v, err := f()
		if err == nil {
			return v, nil
		}
		if errors.Is(err, ErrName) || errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
			return v, backoff.Permanent(err)
		}
		if last == nil && p.Log != nil {
			p.Log.Warn("the blob store failed, trying again", "what", what, "error", err)
		}
		last = err
		return v, err
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(p.For))
	switch {
	case err == nil && last != nil && p.Log != nil:
		p.Log.Info("the blob store works again", "what", what)
	case err != nil && last != nil && !errors.Is(err, last):
		err = fmt.Errorf("%w (%w)", last, err) // the context ended it: what had been failing is what matters
	}
	return v, err
}
