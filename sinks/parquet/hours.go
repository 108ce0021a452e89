package parquet

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

const microsAnHour = int64(time.Hour / time.Microsecond)

// hour is an hour of event time, counted from 1970-01-01T00:00Z.
type hour int64

func hourOf(t arrow.Timestamp) hour {
	h := int64(t) / microsAnHour
	if int64(t)%microsAnHour < 0 {
		h-- // before 1970, division rounds the wrong way
	}
	return hour(h)
}

func (h hour) start() flow.Micros { return flow.Micros(int64(h) * microsAnHour) }

// folder is dt=2026-11-22/hour=18.
func (h hour) folder() string { return h.start().Time().Format("dt=2006-01-02/hour=15") }

// part is those rows of a range that fall into one hour.
type part struct {
	hour hour
	rows int64
	runs []run
}

// run is a stretch of rows of one record. position is the place of its first row in the range.
type run struct {
	rec, from, to int32
	position      int64
}

// splitHours gives the parts of a range in the order of their hours. Its memory is bounded by the rows, 24 bytes each
// at worst, however many hours there are. Rows without a time are in no part; positions count those that are.
func splitHours(recs []arrow.Record) (parts []part, bad flow.BadRows, err error) {
	at := make(map[hour]int)
	position, seen := int64(0), 0
	for i, rec := range recs {
		times, err := flow.Instants(rec, flow.ColTime)
		if err != nil {
			return nil, bad, err
		}
		isNull := func(int) bool { return false }
		if col := rec.Column(rec.Schema().FieldIndices(flow.ColTime)[0]); col.NullN() > 0 {
			isNull = col.IsNull
		}
		for from := 0; from < len(times); {
			if isNull(from) {
				bad.Add(seen+from, "the row has no "+flow.ColTime+": there is no hour to put it in")
				from++
				continue
			}
			h := hourOf(times[from])
			to := from + 1
			for to < len(times) && !isNull(to) && hourOf(times[to]) == h {
				to++
			}
			p, ok := at[h]
			if !ok {
				p = len(parts)
				at[h] = p
				parts = append(parts, part{hour: h})
			}
			parts[p].rows += int64(to - from)
			parts[p].runs = append(parts[p].runs, run{rec: int32(i), from: int32(from), to: int32(to), position: position})
			position += int64(to - from)
			from = to
		}
		seen += len(times)
	}
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(a.hour, b.hour) })
	return parts, bad, nil
}

// span is a stretch of the rows of a range.
type span struct{ position, rows int64 }

// spansOf gives the rows of the range that a part holds, with runs that touch joined: record boundaries leave no trace.
func spansOf(runs []run) []span {
	var spans []span
	for _, r := range runs {
		n := int64(r.to - r.from)
		if last := len(spans) - 1; last >= 0 && spans[last].position+spans[last].rows == r.position {
			spans[last].rows += n
			continue
		}
		spans = append(spans, span{r.position, n})
	}
	return spans
}

// Spans are kept in the file's metadata as varints, gap and length in turn, in base64.
func encodeSpans(spans []span) string {
	var b []byte
	next := int64(0)
	for _, s := range spans {
		b = binary.AppendUvarint(b, uint64(s.position-next))
		b = binary.AppendUvarint(b, uint64(s.rows))
		next = s.position + s.rows
	}
	return base64.RawStdEncoding.EncodeToString(b)
}

func decodeSpans(s string) ([]span, error) {
	b, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("row spans: %w", err)
	}
	var spans []span
	next := int64(0)
	for len(b) > 0 {
		var v [2]int64
		for i := range v {
			u, n := binary.Uvarint(b)
			if n <= 0 || u > 1<<40 {
				return nil, errors.New("row spans: not a list of numbers")
			}
			v[i], b = int64(u), b[n:]
		}
		if v[1] == 0 {
			return nil, errors.New("row spans: one is empty")
		}
		spans = append(spans, span{next + v[0], v[1]})
		next += v[0] + v[1]
	}
	return spans, nil
}

const suffix = ".parquet"

func objectName(r flow.Range, h hour) string {
	return r.Stream + "/" + h.folder() + "/" + r.String() + suffix
}

// parseName is the inverse of objectName, for the files of one stream. Other files are none of ours.
func parseName(stream, name string) (r flow.Range, h hour, ok bool) {
	rest, ok := strings.CutPrefix(name, stream+"/")
	if !ok {
		return r, h, false
	}
	folder, base, ok := cutLast(rest, "/")
	if !ok {
		return r, h, false
	}
	t, err := time.Parse("dt=2006-01-02/hour=15", folder)
	if err != nil {
		return r, h, false
	}
	base, ok1 := strings.CutSuffix(base, suffix)
	base, ok2 := strings.CutPrefix(base, stream+"-")
	base, last, ok3 := cutLast(base, "-")
	base, first, ok4 := cutLast(base, "-")
	id, partition, ok5 := cutLast(base, "-")
	if !(ok1 && ok2 && ok3 && ok4 && ok5) {
		return r, h, false
	}
	p, err1 := strconv.ParseInt(partition, 10, 32)
	f, err2 := strconv.ParseInt(first, 10, 64)
	l, err3 := strconv.ParseInt(last, 10, 64)
	if errors.Join(err1, err2, err3) != nil {
		return r, h, false
	}
	r = flow.Range{Stream: stream, StreamID: id, Partition: int32(p), First: f, Last: l}
	h = hourOf(arrow.Timestamp(t.UnixMicro()))
	return r, h, objectName(r, h) == name
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
