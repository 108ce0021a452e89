package blobs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"sync"

	"github.com/minio/minio-go/v7"
	"github.com/sourcegraph/conc/pool"
)

func (b *Bucket) Put(ctx context.Context, name string, r io.Reader) error {
	key, err := b.key(name)
	if err == nil {
		err = b.put(ctx, key, r)
	}
	if err != nil {
		return b.fail("put", name, err)
	}
	return nil
}

func (b *Bucket) put(ctx context.Context, key string, r io.Reader) error {
	parts := b.partsOf(ctx, r)
	whole, err := parts.next()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	if whole.size == b.partBytes {
		return b.putParts(ctx, key, &pushedBack{whole, parts})
	}
	defer whole.end()
	sum, err := checksum(whole.from, whole.start, whole.size)
	if err != nil {
		return err
	}
	_, err = b.client.PutObject(ctx, b.bucket, key, whole, whole.size, minio.PutObjectOptions{
		DisableMultipart: true, UserMetadata: map[string]string{metaSum: sum},
		// The client signs a body by chunks of its own, of which even no bytes have one: more than Content-Length says.
		DisableContentSha256: whole.size == 0,
	})
	return err
}

// Metadata of objects.
const (
	// metaSum is the CRC-32C of all bytes, in hexadecimal, where they were known when the object was begun. Who reads
	// it from beginning to end compares it.
	metaSum = "Hearthline-Crc32c"
	// metaPut says which Put made an object that was sent in parts.
	metaPut = "Hearthline-Put"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is what metaSum says of these bytes.
func checksum(from io.ReaderAt, start, size int64) (string, error) {
	h := crc32.New(castagnoli)
	if _, err := io.CopyBuffer(h, io.NewSectionReader(from, start, size), make([]byte, min(size+1, 256<<10))); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// putParts sends an object in parts, several at once, then has them joined.
func (b *Bucket) putParts(ctx context.Context, key string, parts *pushedBack) error {
	core := minio.Core{Client: b.client}
	mark := rand.Text()
	metadata := map[string]string{metaPut: mark}
	if s, ok := parts.parts.(*sections); ok {
		sum, err := checksum(s.from, s.start, s.end-s.start)
		if err != nil {
			return err
		}
		metadata[metaSum] = sum
	}
	upload, err := core.NewMultipartUpload(ctx, b.bucket, key, minio.PutObjectOptions{UserMetadata: metadata})
	if err != nil {
		return err
	}
	sent, err := b.sendParts(ctx, key, upload, parts)
	if err == nil {
		if _, err = core.CompleteMultipartUpload(ctx, b.bucket, key, upload, sent, minio.PutObjectOptions{}); err == nil {
			return nil
		}
	}
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), s3AbortWait)
	defer cancel()
	if sent != nil && ctx.Err() == nil {
		// The answer may have been lost, and the try after it told that there is no such upload any more.
		info, statErr := b.client.StatObject(cleanup, b.bucket, key, minio.StatObjectOptions{})
		if statErr == nil && info.UserMetadata[metaPut] == mark {
			return nil
		}
	}
	if abortErr := core.AbortMultipartUpload(cleanup, b.bucket, key, upload); abortErr != nil && codeOf(abortErr) != minio.NoSuchUpload {
		err = errors.Join(err, abortErr)
	}
	return err
}

// sendParts sends what parts gives. The parts come back in their order, nil on an error.
func (b *Bucket) sendParts(ctx context.Context, key, upload string, parts partSource) ([]minio.CompletePart, error) {
	core := minio.Core{Client: b.client}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var sent []minio.CompletePart
	var failed error // of the source
	p := pool.New().WithErrors().WithFirstError().WithMaxGoroutines(s3PartsAtOnce)
	for n := 0; ctx.Err() == nil; n++ {
		part, err := parts.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			failed = err
			cancel()
			break
		}
		mu.Lock()
		sent = append(sent, minio.CompletePart{PartNumber: n + 1})
		mu.Unlock()
		p.Go(func() error { // waits while others are under way: no more is read meanwhile
			defer part.end()
			done, err := core.PutObjectPart(ctx, b.bucket, key, upload, n+1, part, part.size, minio.PutObjectPartOptions{})
			if err != nil {
				cancel()
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			sent[n].ETag = done.ETag
			return nil
		})
	}
	err := p.Wait()
	if failed != nil {
		return nil, failed // what the parts say then only follows from it
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return sent, nil
}

// partSource gives an object part by part: all of the size of a part but the last, which may be empty if it is the
// only one. After the last comes io.EOF. A part is given back by its end.
type partSource interface {
	next() (*body, error)
}

// pushedBack gives a part that was taken from parts once more.
type pushedBack struct {
	part  *body
	parts partSource
}

func (p *pushedBack) next() (*body, error) {
	if part := p.part; part != nil {
		p.part = nil
		return part, nil
	}
	return p.parts.next()
}

// partsOf cuts what r gives into parts. What can be read at random, as bytes in memory and files can, is not copied.
func (b *Bucket) partsOf(ctx context.Context, r io.Reader) partSource {
	at, random := r.(io.ReaderAt)
	seeker, seeks := r.(io.Seeker)
	if random && seeks {
		start, err := seeker.Seek(0, io.SeekCurrent)
		if err == nil {
			end, err := seeker.Seek(0, io.SeekEnd)
			if err == nil && end >= start {
				return &sections{from: at, start: start, at: start, end: end, part: b.partBytes}
			}
		}
	}
	return &copies{r: reader{ctx, r}, part: b.partBytes, free: make(chan []byte, s3PartsAtOnce+1)}
}

// sections are parts of what can be read at random.
type sections struct {
	from           io.ReaderAt
	start, at, end int64
	part           int64
	some           bool
}

func (s *sections) next() (*body, error) {
	if s.at == s.end && s.some {
		return nil, io.EOF
	}
	part := &body{from: s.from, start: s.at, size: min(s.part, s.end-s.at)}
	s.at, s.some = s.at+part.size, true
	return part, nil
}

// copies are parts of what can only be read once: a part must be kept until it has arrived.
type copies struct {
	r    io.Reader
	part int64
	free chan []byte // buffers whose part has been sent
	some bool
	done bool
}

func (c *copies) next() (*body, error) {
	if c.done {
		return nil, io.EOF
	}
	var b []byte
	select {
	case b = <-c.free:
	default:
	}
	b, err := fill(b[:0], c.r, int(c.part))
	if err != nil && err != io.EOF {
		return nil, err
	}
	c.done = err == io.EOF
	if c.done && len(b) == 0 && c.some {
		return nil, io.EOF
	}
	c.some = true
	return &body{from: bytesAt(b), size: int64(len(b)), ended: func() {
		select {
		case c.free <- b:
		default:
		}
	}}, nil
}

// fill appends to b what r gives, until b is size long or r ends with io.EOF. b grows as it must: most are small.
func fill(b []byte, r io.Reader, size int) ([]byte, error) {
	for len(b) < size {
		if len(b) == cap(b) {
			grown := make([]byte, len(b), min(size, max(64<<10, 2*cap(b))))
			copy(grown, b)
			b = grown
		}
		n, err := r.Read(b[len(b):min(cap(b), size)])
		b = b[:len(b)+n]
		if err != nil {
			return b, err
		}
	}
	return b, nil
}

type bytesAt []byte

func (b bytesAt) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// body is bytes lent to the client. net/http may read a request's body for a while after the request has failed, even
// while the next try reads it too, and the client seeks back for each: so reading is locked, and once Put has
// returned nothing more is read of what is the caller's again. A late reader may take bytes from the next try, which
// then ends short of its length: it fails, and there is another.
type body struct {
	mu          sync.Mutex
	from        io.ReaderAt
	start, size int64
	pos         int64 // from start
	over        bool
	ended       func() // nil: nothing to give back
}

var errPutOver = errors.New("the put is over")

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.over:
		return 0, errPutOver
	case b.pos == b.size:
		return 0, io.EOF
	}
	n, err := b.from.ReadAt(p[:min(int64(len(p)), b.size-b.pos)], b.start+b.pos)
	b.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (b *body) Seek(offset int64, whence int) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += b.pos
	case io.SeekEnd:
		offset += b.size
	}
	if offset < 0 || offset > b.size {
		return 0, errors.New("seek outside of the body")
	}
	b.pos = offset
	return offset, nil
}

// end takes the bytes back.
func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over && b.ended != nil {
		b.ended()
	}
	b.over = true
}
