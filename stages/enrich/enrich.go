// Package enrich adds to each reading what a registry file knows of its device: room, kind, model and zone.
//
// # The registry is an input
//
// What a row becomes depends on the registry, and the file may change while rows flow. After a crash the stage reads rows
// again that others have already had from it; would it then use another registry than the first time, its own state and
// that of the stages behind it would silently not be what was published. So the registry in use is part of the stage's
// state:
//
//   - Snapshot is the only point at which a changed file is taken, and the snapshot holds the new content. What follows a
//     checkpoint is made with the registry that the checkpoint holds.
//   - Restore brings back the registry of the checkpoint, whatever the file says by then. Rows that are read again meet the
//     registry they met the first time; the changed file is taken at the next checkpoint.
//
// A change therefore shows after at most one checkpoint interval. This asks of the runtime that nothing made after a
// Snapshot is published before that checkpoint is committed, and that a first checkpoint is made before the first batch.
//
// A file that is broken when it changes is not taken: the registry in use stays, the error is logged once for each change
// of the file and counted. At the start a broken file is an error, with its line.
//
// # The file
//
// YAML, with one key devices, a list of {home, device, room, kind, model, zone}; or CSV with these columns, by name, in any
// order. Home and device are needed, the rest is not.
//
// Input: any schema with home and device. Output "readings": the same, and room, kind, model and zone (null where unknown).
package enrich

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/klauspost/compress/zstd"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/snapshot"
)

// Stage is the stage and its settings. Make it with [New].
type Stage struct {
	// Registry is the path of the file. Without one, every device is unknown.
	Registry string `yaml:"registry"`
	// Unknown says what becomes of rows of devices that the registry does not know: "pass", with nulls, or "dead".
	Unknown string `yaml:"unknown"`
	// MaxBytes bounds the size of the file: it is part of every checkpoint (compressed).
	MaxBytes int64 `yaml:"max_bytes"`

	// Log is told of a broken file. It may be nil.
	Log *slog.Logger `yaml:"-"`

	now     *registry
	looked  look // at the file, last
	failing bool // what was seen then could not be taken
	unknown atomic.Int64
	reloads atomic.Int64
	broken  atomic.Int64
	devices atomic.Int64
}

// look is what the directory says of a file: enough to know that it need not be read again.
type look struct {
	size     int64
	modified time.Time
}

// New gives the stage with its defaults.
func New() *Stage { return &Stage{Unknown: "pass", MaxBytes: 64 << 20} }

// Open checks the settings and reads the registry.
func (s *Stage) Open(context.Context) error {
	if s.Unknown != "dead" && s.Unknown != "pass" {
		return fmt.Errorf("enrich: unknown is %q; it must be dead or pass", s.Unknown)
	}
	if s.MaxBytes < 1 || s.MaxBytes > snapshot.MaxString {
		return fmt.Errorf("enrich: max_bytes is %d; it must be from 1 to %d", s.MaxBytes, snapshot.MaxString)
	}
	r, seen, err := s.read()
	if err != nil {
		return fmt.Errorf("enrich: %w", err)
	}
	if s.now == nil { // not restored before
		s.use(r)
		s.looked = seen
	}
	return nil
}

// Check lets lint find bad settings and a broken registry, and columns that are there already.
func (s *Stage) Check(stream string, schema *arrow.Schema) error {
	for _, c := range added {
		if schema != nil && schema.HasField(c) {
			return fmt.Errorf("enrich: %s has a column %s already", stream, c)
		}
	}
	fresh := &Stage{Registry: s.Registry, Unknown: s.Unknown, MaxBytes: s.MaxBytes}
	return fresh.Open(context.Background())
}

// Counters says what rows in and out do not show. It may be called at any time by any goroutine.
func (s *Stage) Counters() map[string]int64 {
	return map[string]int64{
		"unknown":         s.unknown.Load(), // rows of devices that the registry does not know
		"registry_loads":  s.reloads.Load(), // changes taken
		"registry_broken": s.broken.Load(),  // changes that could not be taken
		"devices":         s.devices.Load(), // in the registry
	}
}

func (s *Stage) use(r *registry) {
	s.now = r
	s.devices.Store(int64(len(r.devices)))
}

// read reads the file as it is now.
func (s *Stage) read() (*registry, look, error) {
	if s.Registry == "" {
		r, err := parse("yaml", nil)
		return r, look{}, err
	}
	format, err := formatOf(s.Registry)
	if err != nil {
		return nil, look{}, err
	}
	f, err := os.Open(s.Registry)
	if err != nil {
		return nil, look{}, fmt.Errorf("read registry: %w", err)
	}
	defer f.Close()
	seen, err := lookAt(f.Stat())
	if err != nil {
		return nil, seen, err
	}
	content, err := io.ReadAll(io.LimitReader(f, s.MaxBytes+1))
	if err != nil {
		return nil, seen, fmt.Errorf("read registry %s: %w", s.Registry, err)
	}
	if int64(len(content)) > s.MaxBytes {
		return nil, seen, fmt.Errorf("registry %s has more than %d bytes: raise max_bytes", s.Registry, s.MaxBytes)
	}
	r, err := parse(format, content)
	if err != nil {
		return nil, seen, fmt.Errorf("registry %s: %w", s.Registry, err)
	}
	return r, seen, nil
}

func lookAt(info os.FileInfo, err error) (look, error) {
	if err != nil {
		return look{}, fmt.Errorf("read registry: %w", err)
	}
	return look{info.Size(), info.ModTime()}, nil
}

// refresh takes a changed file. It never fails: a broken file leaves the registry in use.
func (s *Stage) refresh() {
	if s.Registry == "" {
		return
	}
	seen, err := lookAt(os.Stat(s.Registry))
	if seen == s.looked && (err == nil || s.failing) {
		return
	}
	var r *registry
	if err == nil {
		r, seen, err = s.read()
	}
	s.looked, s.failing = seen, err != nil
	if err != nil {
		s.broken.Add(1)
		if s.Log != nil {
			s.Log.Error("the registry could not be taken; the one before stays in use", "registry", s.Registry, "err", err)
		}
		return
	}
	if r.hash != s.now.hash || r.format != s.now.format {
		s.use(r)
		s.reloads.Add(1)
		if s.Log != nil {
			s.Log.Info("took the changed registry", "registry", s.Registry, "devices", len(r.devices), "hash", r.hash[:12])
		}
	}
}

// Process adds the columns.
func (s *Stage) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	if s.now == nil && in.NumRows() > 0 { // no rows need no registry: the plan can be proved where the file is not
		if err := s.Open(ctx); err != nil {
			return nil, err
		}
	}
	for _, c := range added {
		if in.Schema().HasField(c) {
			return nil, flow.Badf("the input has a column %s already", c)
		}
	}
	home, err := flow.StringsOf(in, flow.ColHome)
	if err != nil {
		return nil, err
	}
	device, err := flow.StringsOf(in, flow.ColDevice)
	if err != nil {
		return nil, err
	}
	n := int(in.NumRows())
	var bad flow.BadRows
	var cols [len(added)]columns.Keys
	for c := range cols {
		cols[c].Grow(n)
	}
	homes, devices := columns.NumbersOf(home), columns.NumbersOf(device)
	known := make(map[uint64]*row)
	var last uint64
	var r *row
	unknown := int64(0)
	for i := range n {
		h, d := homes.At(i), devices.At(i)
		if k := uint64(h)<<32 | uint64(d); r == nil || k != last {
			last = k
			if r = known[k]; r == nil {
				r = s.lookUp(place{homes.Value(h), devices.Value(d)}, &cols)
				known[k] = r
			}
		}
		if !r.known {
			unknown++
			if s.Unknown == "dead" {
				bad.Add(i, r.reason)
			}
		}
		for c := range cols {
			cols[c].Append(r.keys[c])
		}
	}
	s.unknown.Add(unknown)
	out, err := s.output(ctx, in, &cols, bad.Rows)
	if err != nil {
		return nil, err
	}
	return []flow.Output{{To: "readings", Record: out}}, bad.Err()
}

// row is what all rows of a device get.
type row struct {
	known  bool
	reason string // when it is not known
	keys   [len(added)]int32
}

func (s *Stage) lookUp(p place, cols *[len(added)]columns.Keys) *row {
	d, known := s.now.devices[p]
	r := &row{known: known}
	if !known {
		r.reason = fmt.Sprintf("device %.80q of home %.80q is not in the registry", p.device, p.home)
	}
	for c := range cols {
		if r.keys[c] = columns.Null; d[c] != "" {
			r.keys[c] = cols[c].Key(d[c])
		}
	}
	return r
}

func (s *Stage) output(ctx context.Context, in arrow.Record, cols *[len(added)]columns.Keys, bad []int) (arrow.Record, error) {
	mem := columns.Allocator(ctx)
	fields, arrays := slices.Clone(in.Schema().Fields()), slices.Clone(in.Columns())
	for c := range cols {
		a := cols[c].Column(mem)
		defer a.Release()
		fields = append(fields, arrow.Field{Name: added[c], Type: flow.KeyType, Nullable: true})
		arrays = append(arrays, a)
	}
	meta := in.Schema().Metadata()
	all := array.NewRecord(arrow.NewSchema(fields, &meta), arrays, in.NumRows())
	defer all.Release()
	out, err := columns.Without(mem, all, bad)
	if err != nil {
		return nil, flow.Badf("enrich: %v", err)
	}
	return out, nil
}

const layout = 1

// Snapshot takes a changed file, then writes the registry in use.
func (s *Stage) Snapshot(w io.Writer) error {
	if s.now == nil {
		if err := s.Open(context.Background()); err != nil {
			return err
		}
	}
	s.refresh()
	out := snapshot.NewWriter(w, "enrich", layout)
	out.String(s.now.format)
	out.String(s.now.hash)
	packed, err := s.now.pack()
	if err != nil {
		return fmt.Errorf("enrich: %w", err)
	}
	out.Bytes(packed)
	return out.Close()
}

// Restore brings back the registry of the snapshot.
func (s *Stage) Restore(r io.Reader) error {
	in, _, err := snapshot.NewReader(r, "enrich", layout)
	if err != nil {
		return err
	}
	format, hash, packed := strings.Clone(in.String()), in.String(), in.Bytes()
	if err := in.Close(); err != nil {
		return err
	}
	unpack, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(snapshot.MaxString))
	if err != nil {
		return fmt.Errorf("enrich: registry in the snapshot: %w", err)
	}
	defer unpack.Close()
	content, err := io.ReadAll(io.LimitReader(unpack, snapshot.MaxString))
	if err != nil {
		return fmt.Errorf("enrich: registry in the snapshot: %w", err)
	}
	reg, err := parse(format, content)
	if err != nil {
		return fmt.Errorf("enrich: registry in the snapshot: %w", err)
	}
	if reg.hash != hash {
		return errors.New("enrich: the registry in the snapshot is not the one its hash names")
	}
	s.use(reg)
	s.looked, s.failing = look{}, false // the file may be another by now
	return nil
}
