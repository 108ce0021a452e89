package client

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/gofrs/flock"
)

// entry is what is acknowledged at once: some rows of a device, or a message about a command.
type entry struct {
	Home    string          `json:"home,omitempty"`
	Device  string          `json:"device,omitempty"`
	Rows    []row           `json:"rows,omitempty"`
	Topic   string          `json:"topic,omitempty"` // of what is not rows
	Payload json.RawMessage `json:"payload,omitempty"`

	size    int64
	segment *segment
	ended   bool
}

// outbox holds entries in order until they are acknowledged: in memory, and where it has a folder in files of it, each of which is
// deleted when none of its entries waits any more.
type outbox struct {
	dir  string
	most int64
	sync bool
	lock *flock.Flock

	mu      sync.Mutex
	queue   []*entry
	bytes   int64
	current *segment
	number  int
	closed  bool
	changed chan struct{} // closed, and made anew, when something comes or goes
}

// segment is one file.
type segment struct {
	path    string
	file    *os.File // nil when it is only read
	bytes   int64
	waiting int
}

const (
	segmentBytes  = 1 << 20
	entryOverhead = 256 // what an entry takes beside its bytes, measured
	entryBytesMax = 16 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func openOutbox(dir string, most int64, sync bool) (*outbox, error) {
	o := &outbox{dir: dir, most: most, sync: sync, changed: make(chan struct{})}
	if dir == "" {
		return o, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	o.lock = flock.New(filepath.Join(dir, "lock"))
	if ok, err := o.lock.TryLock(); err != nil || !ok {
		return nil, errors.Join(fmt.Errorf("%s is in use by another client", dir), err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.outbox"))
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := o.read(name); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// read takes in what a process before this one has left. Behind an entry that is cut off or damaged nothing of a file was
// ever said to be sent.
func (o *outbox) read(name string) error {
	if _, err := fmt.Sscanf(filepath.Base(name), "%d.outbox", &o.number); err != nil {
		return fmt.Errorf("%s: not a file of an outbox: %w", name, err)
	}
	f, err := os.Open(name) // #nosec G304 -- of the folder that the settings name
	if err != nil {
		return err
	}
	defer f.Close()
	s := &segment{path: name}
	r := bufio.NewReader(f)
	for {
		e, size, err := readEntry(r)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errDamaged) {
			break
		}
		if err != nil {
			return err
		}
		e.size, e.segment = size, s
		s.waiting++
		o.queue = append(o.queue, e)
		o.bytes += size + entryOverhead
	}
	if s.waiting == 0 {
		return os.Remove(name)
	}
	return nil
}

var errDamaged = errors.New("damaged")

// readEntry reads length, checksum (CRC-32C), JSON.
func readEntry(r io.Reader) (*entry, int64, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, 0, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > entryBytesMax {
		return nil, 0, errDamaged
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, 0, err
	}
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(head[4:]) {
		return nil, 0, errDamaged
	}
	e := &entry{}
	if err := json.Unmarshal(body, e); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return e, int64(n), nil
}

// put adds entries, all or none.
func (o *outbox) put(entries []*entry) error {
	var text []byte
	sum := int64(0)
	for _, e := range entries {
		body := encode(e)
		if len(body) > entryBytesMax {
			return fmt.Errorf("%w: %d bytes", ErrReading, len(body))
		}
		e.size = int64(len(body))
		sum += e.size + entryOverhead
		text = binary.BigEndian.AppendUint32(text, uint32(len(body))) // #nosec G115 -- at most entryBytesMax
		text = binary.BigEndian.AppendUint32(text, crc32.Checksum(body, castagnoli))
		text = append(text, body...)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return errors.New("the client's Run has ended")
	}
	if o.bytes+sum > o.most {
		return ErrFull
	}
	if o.dir != "" {
		if err := o.write(text); err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
		o.current.waiting += len(entries)
		for _, e := range entries {
			e.segment = o.current
		}
	}
	o.queue = append(o.queue, entries...)
	o.bytes += sum
	o.tell()
	return nil
}

// write appends to the current file. What it could not write whole it takes back, so that what comes later can be read. Callers
// hold mu.
func (o *outbox) write(text []byte) error {
	if s := o.current; s == nil || s.bytes >= segmentBytes {
		if s != nil {
			if err := s.file.Close(); err != nil {
				return err
			}
			s.file = nil
		}
		o.number++
		path := filepath.Join(o.dir, fmt.Sprintf("%012d.outbox", o.number))
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // #nosec G304 -- likewise
		if err != nil {
			return err
		}
		o.current = &segment{path: path, file: f}
	}
	s := o.current
	n, err := s.file.Write(text)
	if err == nil && o.sync {
		err = s.file.Sync()
	}
	if err != nil {
		if back := s.file.Truncate(s.bytes); back != nil && n > 0 {
			err = errors.Join(err, back)
			o.current = &segment{path: s.path, bytes: segmentBytes, file: s.file} // never written to again
		} else {
			_, seek := s.file.Seek(s.bytes, io.SeekStart)
			err = errors.Join(err, seek)
		}
		return err
	}
	s.bytes += int64(n)
	return nil
}

// tell wakes who waits. Callers hold mu.
func (o *outbox) tell() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// more is closed when something comes or goes.
func (o *outbox) more() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) > 0 {
		done := make(chan struct{})
		close(done)
		return done
	}
	return o.changed
}

// take gives the oldest entries, up to so many rows.
func (o *outbox) take(rowsMax, entriesMax int) []*entry {
	o.mu.Lock()
	defer o.mu.Unlock()
	rows := 0
	for i, e := range o.queue {
		if rows += max(1, len(e.Rows)); rows > rowsMax && i > 0 || i >= entriesMax {
			return slices.Clone(o.queue[:i])
		}
	}
	return slices.Clone(o.queue)
}

func (o *outbox) all() []*entry { return o.queue }

// acknowledge takes entries out.
func (o *outbox) acknowledge(entries []*entry) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range entries {
		e.ended = true
	}
	var failed error
	o.queue = slices.DeleteFunc(o.queue, func(e *entry) bool {
		if !e.ended {
			return false
		}
		o.bytes -= e.size + entryOverhead
		if s := e.segment; s != nil {
			if s.waiting--; s.waiting == 0 && (s.file == nil || s.bytes >= segmentBytes) {
				failed = errors.Join(failed, o.remove(s))
			}
		}
		return true
	})
	if s := o.current; s != nil && s.waiting == 0 && s.bytes > 0 && len(o.queue) == 0 {
		failed = errors.Join(failed, o.remove(s))
	}
	o.tell()
	return failed
}

// remove deletes a file of which nothing waits. Callers hold mu.
func (o *outbox) remove(s *segment) error {
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
	if s == o.current {
		o.current = nil
	}
	if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (o *outbox) waiting() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, e := range o.queue {
		n += len(e.Rows)
	}
	return n
}

// wait returns when everything that is in it now has been taken out.
func (o *outbox) wait(ctx context.Context) error {
	o.mu.Lock()
	first := slices.Clone(o.queue)
	o.mu.Unlock()
	for {
		o.mu.Lock()
		first = slices.DeleteFunc(first, func(e *entry) bool { return e.ended })
		changed := o.changed
		o.mu.Unlock()
		if len(first) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// close gives the files back; what is in them stays.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	if o.current != nil && o.current.file != nil {
		o.current.file.Close()
		o.current.file = nil
		o.current = nil
	}
	if o.lock != nil {
		o.lock.Close()
	}
}
