package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/sourcegraph/conc/pool"
)

// Limits of Read.
const (
	readPieceBytes = 16 << 20
	readsAtOnce    = 4
)

// Read gives an object whole, in one allocation. A large one that can be read at random is read in several pieces at
// once: one connection to a bucket, and one core that copies from a disk's cache, would be what limits it.
func Read(ctx context.Context, s Store, name string) ([]byte, error) {
	r, err := s.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	b, err := readOpen(ctx, r)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("read %q: %w", name, err)
	}
	return b, nil
}

func readOpen(ctx context.Context, r io.Reader) ([]byte, error) {
	size, known := sizeOf(r)
	at, random := r.(io.ReaderAt)
	if !known {
		return io.ReadAll(reader{ctx, r})
	}
	b := make([]byte, size)
	if !random || size <= readPieceBytes {
		if _, err := io.ReadFull(reader{ctx, r}, b); err != nil {
			return nil, err
		}
		_, err := r.Read(make([]byte, 1)) // the end is where a bucket compares its checksum
		if err == nil {
			return nil, errors.New("it has become longer meanwhile")
		}
		if err != io.EOF {
			return nil, err
		}
		return b, nil
	}
	p := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError().WithMaxGoroutines(readsAtOnce)
	for start := int64(0); start < size; start += readPieceBytes {
		p.Go(func(ctx context.Context) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := at.ReadAt(b[start:min(size, start+readPieceBytes)], start)
			if err == io.EOF && start+int64(n) == size {
				err = nil
			}
			return err
		})
	}
	if err := p.Wait(); err != nil {
		return nil, err
	}
	return b, nil
}

// sizeOf is the size of an open object where it is known.
func sizeOf(r io.Reader) (int64, bool) {
	switch r := r.(type) {
	case interface{ Size() int64 }:
		return r.Size(), true
	case interface{ Stat() (fs.FileInfo, error) }:
		info, err := r.Stat()
		if err == nil {
			return info.Size(), true
		}
	}
	return 0, false
}
