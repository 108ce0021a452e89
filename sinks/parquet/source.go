package parquet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	pq "github.com/parquet-go/parquet-go"

	"hearthline/blobs"
)

// source is one file being read.
type source struct {
	name      string
	file      *pq.File
	closer    io.Closer
	layout    *layout
	rangeRows int64
	spans     []span // what is still to be read
	leaves    []*cursor
}

// Files up to this size are read at once and closed: a range of many hours has many small files, and a process may hold
// only so many open.
const readWholeMax = 1 << 20 // bytes

// openObject opens a file for reading at random. A store that cannot do that has it read whole.
func openObject(ctx context.Context, store blobs.Store, o blobs.Info, wholeMax int64) (io.ReaderAt, io.Closer, error) {
	r, err := store.Get(ctx, o.Name)
	if err != nil {
		return nil, nil, err
	}
	if at, ok := r.(io.ReaderAt); ok && o.Size > wholeMax {
		return at, r, nil
	}
	b, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, nil, fmt.Errorf("read %q: %w", o.Name, err)
	}
	if int64(len(b)) != o.Size {
		return nil, nil, fmt.Errorf("read %q: it has %d bytes, listed were %d: it was replaced meanwhile; read again", o.Name, len(b), o.Size)
	}
	return bytes.NewReader(b), io.NopCloser(nil), nil
}

func openSource(ctx context.Context, store blobs.Store, o blobs.Info) (*source, error) {
	at, closer, err := openObject(ctx, store, o, readWholeMax)
	if err != nil {
		return nil, err
	}
	s := &source{name: o.Name, closer: closer}
	if err := s.open(at, o.Size); err != nil {
		return nil, errors.Join(fmt.Errorf("open %q: %w", o.Name, err), closer.Close())
	}
	return s, nil
}

func (s *source) open(at io.ReaderAt, size int64) (err error) {
	if s.file, err = openFile(at, size); err != nil {
		return err
	}
	encoded, _ := s.file.Lookup(metaArrow)
	fingerprint, _ := s.file.Lookup(metaFingerprint)
	schema, err := decodeSchema(encoded, fingerprint)
	if err != nil {
		return err
	}
	if s.layout, err = newLayout(schema); err != nil {
		return err
	}
	if want, got := s.layout.leaves, len(s.file.Metadata().RowGroups); got > 0 {
		if got = len(s.file.Metadata().RowGroups[0].Columns); got != want {
			return fmt.Errorf("it has %d leaf columns; its Arrow schema has %d", got, want)
		}
	}
	rows, _ := s.file.Lookup(metaRangeRows)
	if s.rangeRows, err = strconv.ParseInt(rows, 10, 64); err != nil {
		return fmt.Errorf("metadata %s: %w", metaRangeRows, err)
	}
	s.spans = []span{{0, s.file.NumRows()}}
	if encoded, ok := s.file.Lookup(metaSpans); ok {
		if s.spans, err = decodeSpans(encoded); err != nil {
			return err
		}
	}
	rowsHere := int64(0)
	for _, sp := range s.spans {
		rowsHere += sp.rows
	}
	if rowsHere != s.file.NumRows() {
		return fmt.Errorf("it has %d rows; its metadata speaks of %d", s.file.NumRows(), rowsHere)
	}
	for i := range s.layout.leaves {
		s.leaves = append(s.leaves, &cursor{groups: s.file.RowGroups(), leaf: i})
	}
	return nil
}

// openFile reads the footer. parquet-go may panic on a damaged one.
func openFile(at io.ReaderAt, size int64) (f *pq.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("damaged: %v", p)
		}
	}()
	return pq.OpenFile(at, size, pq.SkipPageIndex(true), pq.SkipBloomFilters(true))
}

// copyRows appends the next n rows to a target of the same layout.
func (s *source) copyRows(t *target, n int64) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("damaged: %v", p)
		}
	}()
	for i, c := range s.layout.columns {
		if err := t.copyColumn[i](s.leaves[c.leaf:], n); err != nil {
			return fmt.Errorf("column %q: %w", s.layout.arrow.Field(i).Name, err)
		}
	}
	return nil
}

func (s *source) close() error {
	var err error
	for _, c := range s.leaves {
		err = errors.Join(err, c.close())
	}
	return errors.Join(err, s.closer.Close())
}

// cursor reads the values of one leaf column, through all row groups and pages.
type cursor struct {
	groups []pq.RowGroup
	leaf   int

	pages  pq.Pages
	page   pq.Page
	values pq.ValueReader
	buf    [512]pq.Value
	left   []pq.Value // of buf; they borrow the page's memory
}

// peek gives the next value without taking it; io.EOF after the last. It is valid until the next peek.
func (c *cursor) peek() (*pq.Value, error) {
	for len(c.left) == 0 {
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
	return &c.left[0], nil
}

func (c *cursor) take() { c.left = c.left[1:] }

// fill reads what the page still has, or goes on to the next page.
func (c *cursor) fill() error {
	if c.page != nil {
		n, err := c.values.ReadValues(c.buf[:])
		c.left = c.buf[:n]
		if n > 0 || err != nil && err != io.EOF {
			return ignoreEOF(err)
		}
		pq.Release(c.page)
		c.page = nil
	}
	if c.pages == nil {
		if len(c.groups) == 0 {
			return io.EOF
		}
		c.pages = c.groups[0].ColumnChunks()[c.leaf].Pages()
		c.groups = c.groups[1:]
	}
	page, err := c.pages.ReadPage()
	if err == io.EOF {
		err = c.pages.Close()
		c.pages = nil
		return err
	}
	if err != nil {
		return err
	}
	c.page, c.values = page, page.Values()
	return nil
}

func ignoreEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

func (c *cursor) close() error {
	if c.page != nil {
		pq.Release(c.page)
		c.page = nil
	}
	if c.pages == nil {
		return nil
	}
	err := c.pages.Close()
	c.pages = nil
	return err
}
