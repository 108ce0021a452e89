package blobs

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/minio/minio-go/v7"
)

func (b *Bucket) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	key, err := b.key(name)
	if err != nil {
		return nil, b.fail("get", name, err)
	}
	o := &object{ctx: ctx, b: b, name: name, key: key}
	if err := o.look(); err != nil {
		return nil, b.fail("get", name, err)
	}
	return o, nil
}

// object is one being read. Each request names the version that the first one met: other bytes are never given.
type object struct {
	ctx  context.Context
	b    *Bucket
	name string
	key  string
	etag string
	size int64

	body io.ReadCloser // what Read takes from, nil before the first and after a broken one
	pos  int64
	want string // CRC-32C of all bytes, "" where nobody noted it
	sum  uint32 // of those before pos
}

// readTries is how often reading goes on after a connection broke, without a byte in between.
const readTries = 5

// look asks for size and version.
func (o *object) look() error {
	info, err := o.b.client.StatObject(o.ctx, o.b.bucket, o.key, minio.StatObjectOptions{})
	if err != nil {
		return err
	}
	o.etag, o.size, o.want = info.ETag, info.Size, info.UserMetadata[metaSum]
	return nil
}

// Size is the object's, in bytes.
func (o *object) Size() int64 { return o.size }

// open asks for the bytes from the offset start on, up to end (not included).
func (o *object) open(start, end int64) (io.ReadCloser, error) {
	var opts minio.GetObjectOptions
	err := opts.SetMatchETag(o.etag)
	if err == nil && (start > 0 || end < o.size) {
		err = opts.SetRange(start, end-1)
	}
	if err != nil {
		return nil, err
	}
	core := minio.Core{Client: o.b.client}
	body, _, _, err := core.GetObject(o.ctx, o.b.bucket, o.key, opts)
	switch codeOf(err) {
	case minio.PreconditionFailed, minio.NoSuchKey, minio.NoSuchVersion, minio.InvalidRange: // of a shorter one
		err = fmt.Errorf("%w: %w", ErrChanged, err)
	}
	return body, err
}

func (o *object) Read(p []byte) (int, error) {
	var err error
	for range readTries {
		if o.pos == o.size {
			return 0, o.end()
		}
		if len(p) == 0 {
			return 0, nil
		}
		if err := o.ctx.Err(); err != nil {
			return 0, o.fail(err)
		}
		if o.body == nil {
			if o.body, err = o.open(o.pos, o.size); err != nil {
				return 0, o.fail(err) // the client has tried often enough
			}
		}
		var n int
		n, err = o.body.Read(p[:min(int64(len(p)), o.size-o.pos)])
		o.pos, o.sum = o.pos+int64(n), crc32.Update(o.sum, castagnoli, p[:n])
		if err != nil { // of a connection that broke; the end is known by its place
			_ = o.body.Close() // what it says follows from err
			o.body = nil
		}
		if n > 0 {
			return n, nil
		}
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return 0, o.fail(err)
}

// end is io.EOF where the bytes read are those put. A server may give the bytes of one version under the name of
// another when it is asked while the object is replaced (versitygw does), or have damaged what it holds.
func (o *object) end() error {
	if got := fmt.Sprintf("%08x", o.sum); o.want != "" && got != o.want {
		return o.fail(fmt.Errorf("%w, or is damaged: its CRC-32C is %s, that of the bytes put is %s", ErrChanged, got, o.want))
	}
	return io.EOF
}

// ReadAt reads with a request of its own; many may at once.
func (o *object) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, o.fail(errors.New("negative offset"))
	}
	want := p[:min(int64(len(p)), max(0, o.size-off))]
	for try := 0; n < len(want) && try < readTries; try++ {
		var body io.ReadCloser
		body, err = o.open(off+int64(n), off+int64(len(want)))
		if err != nil {
			return n, o.fail(err)
		}
		var more int
		more, err = io.ReadFull(body, want[n:])
		err = errors.Join(err, body.Close())
		if n += more; more > 0 {
			try = 0
		}
		if o.ctx.Err() != nil {
			return n, o.fail(o.ctx.Err())
		}
	}
	switch {
	case n < len(want):
		return n, o.fail(err)
	case n < len(p):
		return n, io.EOF
	}
	return n, nil
}

func (o *object) Close() error {
	if o.body == nil {
		return nil
	}
	err := o.body.Close()
	o.body = nil
	return err
}

func (o *object) fail(err error) error { return o.b.fail("read", o.name, err) }
