package run

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/streams"
)

// A checkpoint is everything a task needs to go on from where it was: for each input the next offset and the
// marks, and the state of its stages. It becomes valid by one Kafka offset commit, whose metadata is either the
// whole checkpoint or the name of the blob that holds it. Whoever takes the partition over reads offset and
// metadata together, so nothing can be half done.
type checkpoint struct {
	Version int            `json:"v"`
	Inputs  []inputMark    `json:"in"`
	Intent  *intent        `json:"intent,omitempty"` // of a sink: the range it is about to write
	States  []stateSection `json:"states,omitempty"` // what follows in the blob, in this order
	// Watermark is a task's, which its inputs' do not tell: it only rises, and one that has ended does not hold it.
	Watermark flow.Micros `json:"wm,omitempty"`
	// Told is the time that each stream of a task was last told: a task that has forgotten it sends heartbeats where it
	// sent none before, and readers learn the time by other steps than they would have.
	Told map[string]flow.Micros `json:"told,omitempty"`
	// Muted is, of each input, where the version of a stage begins whose output counts: what comes before has been made by
	// the one before it. See turn.
	Muted map[string]int64 `json:"muted,omitempty"`
	// Promoted names the promotion by which a stage's second version has this partition, Canaries the percent of homes that
	// are a canary's here, and Held the promotion for which a shadow has stopped; stages by their IDs.
	Promoted map[string]string  `json:"promoted,omitempty"`
	Canaries map[string]float64 `json:"canaries,omitempty"`
	Held     string             `json:"held,omitempty"`

	state  map[string][]byte
	making time.Duration // the time it took; not kept
	last   func()        // called when it is valid; nil: nobody waits for it
}

// inputMark is how far one input stream has been taken.
type inputMark struct {
	Stream    string      `json:"stream"`
	StreamID  string      `json:"id"` // a stream made anew has another, and its offsets mean something else
	Next      int64       `json:"next"`
	Watermark flow.Micros `json:"wm"`
	Begun     flow.Micros `json:"begun,omitempty"` // see marks
	Marks     []mark      `json:"marks"`
}

// intent is the range a sink is about to write: offsets, both included.
type intent struct {
	First int64 `json:"first"`
	Last  int64 `json:"last"`
}

type stateSection struct {
	Stage string `json:"stage"`
	Bytes int    `json:"bytes"`
}

const (
	checkpointVersion = 1
	// One that is muted: a binary that did not know of it would publish again what another version has made.
	checkpointMuted = 2
	// Kafka refuses commit metadata above 4,096 bytes (offset.metadata.max.bytes).
	metadataBytesMax = 3800
	blobPrefix       = "blob:"
	blobMagic        = "HLCK1\n"
	// A blob nobody's commit names is what a killed or fenced task left; after this long it is removed.
	orphanAge = time.Hour
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode gives the checkpoint's bytes: magic, length of the header, header (JSON), states, CRC-32C of it all. They come in
// pieces, for states may be large, and are not copied.
func (c *checkpoint) encode() (pieces [][]byte, err error) {
	c.Version = checkpointVersion
	if len(c.Muted) > 0 {
		c.Version = checkpointMuted
	}
	c.States = c.States[:0]
	for _, name := range slices.Sorted(maps.Keys(c.state)) {
		c.States = append(c.States, stateSection{Stage: name, Bytes: len(c.state[name])})
	}
	head, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	b := append([]byte(blobMagic), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[len(blobMagic):], uint32(len(head)))
	pieces = append(pieces, append(b, head...))
	for _, s := range c.States {
		pieces = append(pieces, c.state[s.Stage])
	}
	sum := uint32(0)
	for _, piece := range pieces {
		sum = crc32.Update(sum, castagnoli, piece)
	}
	return append(pieces, binary.BigEndian.AppendUint32(nil, sum)), nil
}

// readerOf reads pieces one after the other. It can go back to the start (io.Seeker), which a store needs that tries a
// Put again.
func readerOf(pieces [][]byte) io.ReadSeeker {
	size := 0
	for _, piece := range pieces {
		size += len(piece)
	}
	return io.NewSectionReader(piecesAt(pieces), 0, int64(size))
}

// piecesAt reads from any place of the pieces' bytes.
type piecesAt [][]byte

func (p piecesAt) ReadAt(b []byte, off int64) (n int, err error) {
	for _, piece := range p {
		if off >= int64(len(piece)) {
			off -= int64(len(piece))
			continue
		}
		n += copy(b[n:], piece[off:])
		off = 0
		if n == len(b) {
			return n, nil
		}
	}
	return n, io.EOF
}

var errCheckpoint = errors.New("checkpoint cannot be read")

func decodeCheckpoint(b []byte) (*checkpoint, error) {
	n := len(blobMagic)
	if len(b) < n+8 || string(b[:n]) != blobMagic {
		return nil, fmt.Errorf("%w: not a checkpoint", errCheckpoint)
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fmt.Errorf("%w: checksum differs", errCheckpoint)
	}
	size := int(binary.BigEndian.Uint32(body[n:]))
	body = body[n+4:]
	if size > len(body) {
		return nil, fmt.Errorf("%w: cut short", errCheckpoint)
	}
	c, err := decodeHeader(body[:size])
	if err != nil {
		return nil, err
	}
	body = body[size:]
	c.state = map[string][]byte{}
	for _, s := range c.States {
		if s.Bytes < 0 || s.Bytes > len(body) {
			return nil, fmt.Errorf("%w: state of %s cut short", errCheckpoint, s.Stage)
		}
		c.state[s.Stage], body = body[:s.Bytes], body[s.Bytes:]
	}
	return c, nil
}

func decodeHeader(b []byte) (*checkpoint, error) {
	c := &checkpoint{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("%w: %w", errCheckpoint, err)
	}
	if c.Version != checkpointVersion && c.Version != checkpointMuted {
		return nil, fmt.Errorf("%w: it has layout %d, this binary reads up to %d; run the version that wrote it", errCheckpoint, c.Version, checkpointMuted)
	}
	return c, nil
}

// blobsOf is the prefix of the checkpoints of one task.
func blobsOf(group, stream string, partition int32) string {
	return fmt.Sprintf("checkpoints/%s/%s-%d/", group, stream, partition)
}

// keeper writes and reads the checkpoints of one task. It is used by one goroutine at a time.
type keeper struct {
	store  blobs.Store
	commit func(context.Context, []streams.Commit) error
	prefix string // of its blobs: group/stream-partition/
	names  []string
	now    func() time.Time
	// since is when the task's commit had been read. What was put after that may be the checkpoint of its successor, even
	// if it is old by the time the task comes to look at it: a machine may sleep for hours in between.
	since time.Time
}

// save makes c valid: blob first, under a new name, then the commit that names it.
func (k *keeper) save(ctx context.Context, partition int32, c *checkpoint) (size int, err error) {
	pieces, err := c.encode()
	if err != nil {
		return 0, err
	}
	for _, piece := range pieces {
		size += len(piece)
	}
	var metadata, name string
	if len(c.state) == 0 {
		head, err := json.Marshal(c)
		if err != nil {
			return 0, err
		}
		metadata = string(head)
	}
	if metadata == "" || len(metadata) > metadataBytesMax {
		name = k.newName()
		if err := k.store.Put(ctx, name, readerOf(pieces)); err != nil {
			return 0, fmt.Errorf("write checkpoint: %w", err)
		}
		metadata = blobPrefix + name
	}
	commits := make([]streams.Commit, len(c.Inputs))
	for i, in := range c.Inputs {
		commits[i] = streams.Commit{Stream: in.Stream, Partition: partition, Offset: in.Next, Metadata: metadata}
	}
	if err := k.commit(ctx, commits); err != nil {
		// The blob stays, also when the commit was refused: an attempt before that may have taken effect, its answer
		// lost. What nobody names is swept up later.
		return 0, fmt.Errorf("commit checkpoint: %w", err)
	}
	k.forget(ctx, name)
	return size, nil
}

// newName is a name that no checkpoint has had: its time, for sweep, and a random number, since a clock that is set back
// tells a time twice, and a task that was replaced without knowing it has the same prefix.
func (k *keeper) newName() string {
	return fmt.Sprintf("%s%d-%016x", k.prefix, k.now().UnixMicro(), rand.Uint64()) // #nosec G404 -- names must differ, not be secret
}

// forget deletes the checkpoint before the last one. Only names this task has itself written or loaded are
// deleted: a task that has been replaced without knowing it must not touch its successor's.
func (k *keeper) forget(ctx context.Context, newest string) {
	if newest != "" {
		k.names = append(k.names, newest)
	}
	for len(k.names) > 2 {
		if err := k.store.Delete(ctx, k.names[0]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return // again next time
		}
		k.names = k.names[1:]
	}
}

// load reads the checkpoint that a commit's metadata holds or names; nil when there is no commit yet.
func (k *keeper) load(ctx context.Context, metadata string) (*checkpoint, error) {
	if metadata == "" {
		return nil, nil
	}
	name, ok := strings.CutPrefix(metadata, blobPrefix)
	if !ok {
		return decodeHeader([]byte(metadata))
	}
	b, err := blobs.Read(ctx, k.store, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("checkpoint %s is named by Kafka's commit but is not in the checkpoint store: "+
			"the store was emptied, or this process uses another one than the last; point it at the right store, "+
			"or reset the consumer group to begin anew: %w", name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read checkpoint %s: %w", name, err)
	}
	c, err := decodeCheckpoint(b)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", name, err)
	}
	k.names = []string{name}
	return c, nil
}

// last reads the newest checkpoint that the commits for a partition hold or name, by stream; nil when there is none. They
// all hold the same one, except that an input which was dropped keeps what was committed for it last. If that input
// is read again, what the older checkpoint says of it still stands.
func (k *keeper) last(ctx context.Context, commits map[string]streams.Committed) (*checkpoint, error) {
	seen := map[string]bool{"": true}
	var last *checkpoint
	var names []string
	var gone error
	for _, stream := range slices.Sorted(maps.Keys(commits)) {
		metadata := commits[stream].Metadata
		if seen[metadata] {
			continue
		}
		seen[metadata] = true
		c, err := k.load(ctx, metadata)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			gone = err // of a dropped input: its blob has been replaced and removed since
		case err != nil:
			return nil, err
		case last == nil || c.covers(last):
			c.adopt(last)
			last, names = c, k.names
		default:
			last.adopt(c)
		}
		k.names = nil
	}
	if gone != nil && (last == nil || !last.agrees(commits)) {
		return nil, gone // the newest itself is not there
	}
	k.names = names
	return last, nil
}

// covers says whether c is later than o: of some input that both have, it has taken more.
func (c *checkpoint) covers(o *checkpoint) bool {
	for _, in := range c.Inputs {
		for _, other := range o.Inputs {
			if in.Stream == other.Stream && in.Next > other.Next {
				return true
			}
		}
	}
	return false
}

// adopt takes over what an older checkpoint says of inputs that c does not know.
func (c *checkpoint) adopt(o *checkpoint) {
	if o == nil {
		return
	}
	for _, other := range o.Inputs {
		if !slices.ContainsFunc(c.Inputs, func(in inputMark) bool { return in.Stream == other.Stream }) {
			c.Inputs = append(c.Inputs, other)
		}
	}
}

// agrees says whether c stands where the commits do.
func (c *checkpoint) agrees(commits map[string]streams.Committed) bool {
	return !slices.ContainsFunc(c.Inputs, func(in inputMark) bool {
		at, ok := commits[in.Stream]
		return ok && at.Offset != in.Next
	})
}

// sweep removes what earlier tasks of this partition left behind, long ago.
func (k *keeper) sweep(ctx context.Context) error {
	infos, err := k.store.List(ctx, k.prefix)
	if err != nil {
		return fmt.Errorf("list checkpoints: %w", err)
	}
	for _, info := range infos {
		micros, _, _ := strings.Cut(strings.TrimPrefix(info.Name, k.prefix), "-")
		at, err := strconv.ParseInt(micros, 10, 64)
		if err != nil || slices.Contains(k.names, info.Name) || k.since.Sub(time.UnixMicro(at)) < orphanAge {
			continue
		}
		if err := k.store.Delete(ctx, info.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove old checkpoint: %w", err)
		}
	}
	return nil
}
