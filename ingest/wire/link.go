package wire

import (
	"crypto/tls"
	"sync"
	"time"

	"github.com/sourcegraph/conc"
)

// Link is one connection's way out: bytes are appended by any goroutine, and written by whoever flushes first
// while the others go on. A client that does not read holds up nobody but itself.
type Link struct {
	Tls      *tls.Conn
	Wire     *Wire
	Tasks    *conc.WaitGroup
	BytesMax int           // waiting to be written
	Timeout  time.Duration // of one write
	Frame    Framing       // What goes around what is added; nil: nothing

	// behind is not nil where writing never blocks: it then holds what the socket does not take yet.
	behind interface {
		waits() bool
		retry(within time.Duration) // calls resume when it does not wait any more, or close when it still does then
	}

	mu      sync.Mutex
	out     []byte // from outBuffers; nil while empty
	writing bool
	stalled bool // writing goes on when behind does not wait any more
	closing bool // close when out is written
	closed  bool
	gone    chan struct{} // see Gone
}

// Framing puts what is sent in frames of another protocol.
type Framing interface {
	// Head appends what goes before size bytes, at most HeadMax.
	Head(b []byte, size int) []byte
	// Last appends what is sent before the connection is closed.
	Last(b []byte) []byte
}

// HeadMax bounds what a Framing puts before a packet, bytes.
const HeadMax = 10

var outBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

const (
	outKeep    = 64 << 10 // the largest buffer that goes back to the pool, bytes
	writeChunk = 32 << 10 // what is given at once to a socket that may not take it, bytes
)

// Gone is closed when the connection is. It is made when it is asked for: few connections are ever waited for.
func (l *Link) Gone() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone == nil {
		l.gone = make(chan struct{})
		if l.closed {
			close(l.gone)
		}
	}
	return l.gone
}

// Add appends to what is to be written. It says false, and adds nothing, when the client is too far behind (it
// would then hold more than bytesMax), or gone.
func (l *Link) Add(size int, encode func(b []byte) []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing || l.closed || len(l.out)+size > l.BytesMax {
		return false
	}
	l.room()
	if l.Frame == nil {
		l.out = encode(l.out)
		return true
	}
	// The head comes before what tells its size: there is room for the longest, and the packet moves up to what it has.
	at := len(l.out)
	l.out = encode(append(l.out, make([]byte, HeadMax)...))
	packet := l.out[at+HeadMax:]
	head := l.Frame.Head(l.out[:at], len(packet))
	l.out = append(head, packet...)
	return true
}

// AddBare appends what is no packet, and has no frame put around it.
func (l *Link) AddBare(b []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing || l.closed || len(l.out)+len(b) > l.BytesMax {
		return false
	}
	l.room()
	l.out = append(l.out, b...)
	return true
}

// room takes a buffer if there is none. Callers hold mu.
func (l *Link) room() {
	if l.out == nil {
		l.out = (*outBuffers.Get().(*[]byte))[:0]
	}
}

// Flush writes what was added, on this goroutine, unless another one is at it.
func (l *Link) Flush() {
	if l.begin() {
		l.write()
	}
}

// FlushApart writes without ever waiting for the client: for callers that serve more than this connection.
func (l *Link) FlushApart() {
	switch {
	case !l.begin():
	case l.behind != nil:
		l.write()
	default:
		l.Tasks.Go(l.write)
	}
}

func (l *Link) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writing || l.closed || len(l.out) == 0 && !l.closing {
		return false
	}
	l.writing = true
	return true
}

// write is called by who has begun, until there is nothing left, or the socket takes no more.
func (l *Link) write() {
	for {
		out, ok := l.next()
		if !ok {
			return
		}
		if l.behind == nil {
			l.Tls.SetWriteDeadline(time.Now().Add(l.Timeout))
		}
		_, err := l.Tls.Write(out)
		if cap(out) <= outKeep {
			outBuffers.Put(&out)
		}
		if err != nil {
			l.close()
		}
	}
}

// next takes what is to be written now. It ends the writing when that is nothing.
func (l *Link) next() (out []byte, ok bool) {
	l.mu.Lock()
	if l.behind != nil && !l.closed && l.behind.waits() {
		l.stalled = true
		l.mu.Unlock()
		l.behind.retry(l.Timeout)
		return nil, false
	}
	out, l.out = l.out, nil
	if len(out) == 0 || l.closed {
		l.writing = false
		end := l.closing && !l.closed
		l.mu.Unlock()
		if end {
			l.close()
		}
		return nil, false
	}
	if l.behind != nil && len(out) > writeChunk {
		out, l.out = out[:writeChunk:writeChunk], out[writeChunk:]
	}
	l.mu.Unlock()
	return out, true
}

// resume goes on writing once what was behind is written.
func (l *Link) resume() {
	l.mu.Lock()
	again := l.stalled && !l.behind.waits()
	if again {
		l.stalled = false
	}
	l.mu.Unlock()
	if again {
		l.write()
	}
}

// Finish writes what was added and closes, without waiting for the client longer than one write's timeout.
func (l *Link) Finish() {
	l.last()
	l.Flush()
}

// FinishApart is Finish for callers that serve more than this connection.
func (l *Link) FinishApart() {
	l.last()
	l.FlushApart()
}

func (l *Link) last() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Frame != nil && !l.closing && !l.closed {
		l.room()
		l.out = l.Frame.Last(l.out)
	}
	l.closing = true
}

// close ends the connection at once, and wakes its reader.
func (l *Link) close() {
	l.mu.Lock()
	was := l.closed
	l.closed, l.out = true, nil
	if !was && l.gone != nil {
		close(l.gone)
	}
	l.mu.Unlock()
	if !was {
		l.Tls.Close()
	}
}

func (l *Link) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}
