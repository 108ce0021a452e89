package streams

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// codec is how a value is compressed. The numbers are on the wire.
type codec uint8

const (
	codecNone codec = 0
	codecLZ4  codec = 1 // one block (no frame): the header gives the size
	codecZstd codec = 2 // one frame, level 1
)

func (c codec) String() string {
	switch c {
	case codecNone:
		return "none"
	case codecLZ4:
		return "lz4"
	case codecZstd:
		return "zstd"
	}
	return fmt.Sprintf("codec %d", uint8(c))
}

func codecOf(name string) (codec, error) {
	for _, c := range []codec{codecNone, codecLZ4, codecZstd} {
		if c.String() == name {
			return c, nil
		}
	}
	return 0, fmt.Errorf("compression is %q; want none, lz4 or zstd", name)
}

// A coder per message costs more than a small message's compression (its tables are up to 1 MB): both are pooled.
// zstd's encoder and decoder pool by themselves, and EncodeAll and DecodeAll may be called by many at once.
var (
	lz4Coders   = sync.Pool{New: func() any { return new(lz4.Compressor) }}
	zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // only wrong options do this
		}
		return e
	})
	zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(1<<30))
		if err != nil {
			panic(err)
		}
		return d
	})
)

// compress appends src to dst, compressed by c, and says which codec it took: what does not get smaller stays as
// it is.
func compress(dst, src []byte, c codec) ([]byte, codec) {
	start := len(dst)
	switch c {
	case codecLZ4:
		dst = grow(dst, lz4.CompressBlockBound(len(src)))
		coder := lz4Coders.Get().(*lz4.Compressor)
		n, err := coder.CompressBlock(src, dst[start:cap(dst)])
		lz4Coders.Put(coder)
		if err == nil && n > 0 && n < len(src) {
			return dst[:start+n], codecLZ4
		}
	case codecZstd:
		dst = zstdEncoder().EncodeAll(src, dst)
		if len(dst)-start < len(src) {
			return dst, codecZstd
		}
	}
	return append(dst[:start], src...), codecNone
}

// grow makes room for n more bytes beyond len(b).
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	bigger := make([]byte, len(b), len(b)+n)
	copy(bigger, b)
	return bigger
}

// decompress writes exactly len(dst) bytes, or fails.
func decompress(dst, src []byte, c codec) error {
	var n int
	var err error
	switch c {
	case codecNone:
		n = copy(dst, src)
		if len(src) > len(dst) {
			n = len(src)
		}
	case codecLZ4:
		n, err = lz4.UncompressBlock(src, dst)
	case codecZstd:
		var out []byte
		out, err = zstdDecoder().DecodeAll(src, dst[:0:len(dst)])
		n = len(out)
	default:
		return fmt.Errorf("unknown compression %v", c)
	}
	if err != nil {
		return fmt.Errorf("decompress by %v: %w", c, err)
	}
	if n != len(dst) {
		return fmt.Errorf("decompress by %v: %d bytes; the header says %d", c, n, len(dst))
	}
	return nil
}

// expansionMax is the most bytes that a byte can become: what claims more is refused before memory is taken for it.
// LZ4 spends a byte on at most 255; zstd's runs are unlimited, but Arrow's padding and constant columns stay below this.
const expansionMax = 1 << 14
