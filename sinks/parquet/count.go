package parquet

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"hearthline/blobs"
)

// Counts is what a store holds of a stream.
type Counts struct {
	Files int
	Rows  int64
	Bytes int64
}

// Count counts a stream's files and rows, from the files' footers. Who counts again and again keeps a [Counter].
func Count(ctx context.Context, store blobs.Store, stream string) (Counts, error) {
	return (&Counter{Store: store}).Count(ctx, stream)
}

// Counter counts as Count does, but reads the footer of each file only once. Methods may be called at once.
type Counter struct {
	Store blobs.Store

	mu   sync.Mutex
	rows map[blobs.Info]int64
}

// countedMax bounds the files a Counter remembers, some 200 bytes each. Files beyond are read at each count.
const countedMax = 500_000

// Count lists the stream's files and adds up their rows.
func (c *Counter) Count(ctx context.Context, stream string) (Counts, error) {
	list, err := c.Store.List(ctx, stream+"/")
	if err != nil {
		return Counts{}, fmt.Errorf("count rows of stream %q: %w", stream, err)
	}
	var n Counts
	for _, o := range list {
		if _, _, ok := parseName(stream, o.Name); !ok {
			continue
		}
		rows, err := c.rowsOf(ctx, o)
		if err != nil {
			return Counts{}, fmt.Errorf("count rows of stream %q: %w", stream, err)
		}
		n.Files++
		n.Rows += rows
		n.Bytes += o.Size
	}
	return n, nil
}

func (c *Counter) rowsOf(ctx context.Context, o blobs.Info) (int64, error) {
	c.mu.Lock()
	rows, ok := c.rows[o]
	c.mu.Unlock()
	if ok {
		return rows, nil
	}
	at, closer, err := openObject(ctx, c.Store, o, 0)
	if err != nil {
		return 0, err
	}
	f, err := openFile(at, o.Size)
	if err = errors.Join(err, closer.Close()); err != nil {
		return 0, fmt.Errorf("read the footer of %q: %w", o.Name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rows == nil {
		c.rows = make(map[blobs.Info]int64)
	}
	if len(c.rows) < countedMax {
		c.rows[o] = f.NumRows()
	}
	return f.NumRows(), nil
}
