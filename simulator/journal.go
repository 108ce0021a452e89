package simulator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// The journal is one text file:
//
//	{"version":1,"seed":7,"rows":{"good":5120},"terms":[{"interval_ns":…,"rounds":…,"faults":"…"}]}
//	home-0001 <acknowledged> <reserved> <from>:<start>:<terms> …
//	…
//	end <xxhash of all above, hexadecimal>
//
// A hub's line says: every slot below acknowledged (a position) is; no slot of round reserved or above can have been sent;
// and its stretches.

const journalVersion = 1

// stretchesMax bounds a hub's stretches in the journal; the oldest go first. A restart after a long pause, or with other
// settings, adds one.
const stretchesMax = 64

type journalHead struct {
	Version int              `json:"version"`
	Seed    uint64           `json:"seed"`
	Rows    map[string]int64 `json:"rows"`
	Terms   []*terms         `json:"terms"`
}

// journal is the file in memory.
type journal struct {
	head journalHead
	hubs map[string]*hubMark
	list []string // names, in file order
}

// hubMark is a hub's line.
type hubMark struct {
	acknowledged int64
	reserved     int64 // rounds
	stretches    []stretch
}

func (j *journal) encode() ([]byte, error) {
	head, err := json.Marshal(j.head)
	if err != nil {
		return nil, fmt.Errorf("write the journal: %w", err)
	}
	index := make(map[*terms]int, len(j.head.Terms))
	for i, t := range j.head.Terms {
		index[t] = i
	}
	b := append(head, '\n')
	for _, name := range j.list {
		m := j.hubs[name]
		b = append(append(b, name...), ' ')
		b = append(strconv.AppendInt(b, m.acknowledged, 10), ' ')
		b = strconv.AppendInt(b, m.reserved, 10)
		for _, s := range m.stretches {
			b = append(strconv.AppendInt(append(b, ' '), s.from, 10), ':')
			b = append(strconv.AppendInt(b, s.start, 10), ':')
			b = strconv.AppendInt(b, int64(index[s.terms]), 10)
		}
		b = append(b, '\n')
	}
	return fmt.Appendf(b, "end %016x\n", xxhash.Sum64(b)), nil
}

var errJournal = errors.New("the journal cannot be read")

func decodeJournal(b []byte) (*journal, error) {
	at := bytes.LastIndex(b, []byte("\nend "))
	if at < 0 || string(b[at+1:]) != fmt.Sprintf("end %016x\n", xxhash.Sum64(b[:at+1])) {
		return nil, fmt.Errorf("%w: its last line does not fit the rest", errJournal)
	}
	lines := strings.Split(string(b[:at]), "\n")
	j := &journal{hubs: make(map[string]*hubMark, len(lines)-1)}
	if err := json.Unmarshal([]byte(lines[0]), &j.head); err != nil {
		return nil, fmt.Errorf("%w: line 1: %w", errJournal, err)
	}
	if j.head.Version != journalVersion {
		return nil, fmt.Errorf("%w: it has version %d, this program reads %d", errJournal, j.head.Version, journalVersion)
	}
	for i, line := range lines[1:] {
		name, m, err := decodeMark(line, j.head.Terms)
		if err != nil || j.hubs[name] != nil {
			return nil, fmt.Errorf("%w: line %d: %q", errJournal, i+2, line)
		}
		j.hubs[name] = m
		j.list = append(j.list, name)
	}
	return j, nil
}

func decodeMark(line string, terms []*terms) (string, *hubMark, error) {
	fields := strings.Fields(line)
	if len(fields) < 4 {
		return "", nil, errJournal
	}
	m := &hubMark{}
	var err error
	number := func(s string) int64 {
		n, e := strconv.ParseInt(s, 10, 64)
		err = errors.Join(err, e)
		return n
	}
	m.acknowledged, m.reserved = number(fields[1]), number(fields[2])
	for _, f := range fields[3:] {
		parts := strings.Split(f, ":")
		if len(parts) != 3 {
			return "", nil, errJournal
		}
		s := stretch{from: number(parts[0]), start: number(parts[1])}
		k := number(parts[2])
		if err != nil || k < 0 || k >= int64(len(terms)) || terms[k] == nil {
			return "", nil, errJournal
		}
		s.terms = terms[k]
		m.stretches = append(m.stretches, s)
	}
	if m.acknowledged < 0 || m.reserved < 0 {
		err = errors.Join(err, errJournal)
	}
	return fields[0], m, err
}

// readJournal gives the journal at path, an empty one where there is none yet.
func readJournal(path string) (*journal, error) {
	b, err := os.ReadFile(path) // #nosec G304 -- a file of the data folder
	if errors.Is(err, fs.ErrNotExist) {
		return &journal{head: journalHead{Version: journalVersion, Rows: map[string]int64{}}, hubs: map[string]*hubMark{}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	j, err := decodeJournal(b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w; move it away to start afresh, with a fresh store as well (sequences start at 1 again)", path, err)
	}
	if j.head.Rows == nil {
		j.head.Rows = map[string]int64{}
	}
	return j, nil
}

// write puts the journal at path, durably.
func (j *journal) write(path string) error {
	b, err := j.encode()
	if err != nil {
		return err
	}
	return writeAtomically(path, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}
