package console

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/sourcegraph/conc/pool"
)

const (
	tapsMax       = 8 // who look at rows at once
	tapRows       = 100
	tapRowsMax    = 100_000
	tapTimeoutMax = 10 * time.Minute
	tapFlush      = 256 // rows that are written before the next flush, at most

	// tapRowsPerSecond bounds what a looker takes of the processor, which stages need.
	tapRowsPerSecond = 100_000

	arrowStream = "application/vnd.apache.arrow.stream"
	ndjson      = "application/x-ndjson"
)

// serveTap gives the next rows that pass on a stream: /api/tap?stream=NAME&rows=N, as NDJSON, or as an Arrow IPC
// stream to whoever accepts application/vnd.apache.arrow.stream. It ends after N rows, after ten minutes, or when
// the schema changes. The trailer Hearthline-Dropped counts the rows that passed and were not shown because the
// reader was slow, or they were more than a looker gets (100,000 a second); Hearthline-Error says why it ended early.
func (s *Server) serveTap(w http.ResponseWriter, r *http.Request) {
	stream, rows, status, err := s.tapRequest(r)
	if err != nil {
		http.Error(w, err.Error(), status)
		return
	}
	select {
	case s.looking <- struct{}{}:
		defer func() { <-s.looking }()
	default:
		w.Header().Set("Retry-After", "5")
		http.Error(w, fmt.Sprintf("%d others look at rows already; try again", tapsMax), http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), tapTimeoutMax)
	defer cancel()
	records, dropped, wait := s.watch(ctx, cancel, stream)
	w.Header().Set("Trailer", "Hearthline-Dropped, Hearthline-Error")
	t := &tapWriter{w: w, out: http.NewResponseController(w), left: rows, wait: s.writeWait}
	if strings.Contains(r.Header.Get("Accept"), arrowStream) {
		t.arrow = true
		w.Header().Set("Content-Type", arrowStream)
	} else {
		w.Header().Set("Content-Type", ndjson)
	}
	if t.flush() == nil { // the headers: whoever waits for rows knows that it may wait
		t.copy(ctx, records)
	}
	cancel()
	for rec := range records {
		rec.Release()
	}
	w.Header().Set("Hearthline-Dropped", strconv.FormatInt(dropped(), 10))
	if err := wait(); err != nil {
		w.Header().Set("Hearthline-Error", trailer(err))
		if s.Log != nil {
			s.Log.Warn("look at rows", "stream", stream.Name, "error", err)
		}
	}
}

// watch begins to look at a stream, where it passes or, of one on Kafka, with a reader of its own. wait is called
// once records are closed; it gives the error of that reader.
func (s *Server) watch(ctx context.Context, cancel func(), stream *GraphStream) (records <-chan arrow.Record, dropped func() int64, wait func() error) {
	if stream.Unit != "" || s.Tail == nil {
		records, dropped = s.Taps.Watch(ctx, stream.Name)
		return records, dropped, func() error { return nil }
	}
	taps := &Taps{} // of this looker alone
	records, dropped = taps.Watch(ctx, stream.Name)
	p := pool.New().WithErrors()
	p.Go(func() error {
		defer cancel()
		err := s.Tail(ctx, stream.Name, func(partition int32, rec arrow.Record) {
			if rec != nil { // a heartbeat has no rows
				taps.Offer(stream.Name, partition, rec)
			}
		})
		if ctx.Err() != nil {
			return nil // it was told to end
		}
		return err
	})
	return records, dropped, p.Wait
}

// tapRequest reads the query; status is for err.
func (s *Server) tapRequest(r *http.Request) (stream *GraphStream, rows int64, status int, err error) {
	if s.graph == nil || s.Taps == nil && s.Tail == nil {
		return nil, 0, http.StatusNotFound, fmt.Errorf("this process has no streams to look at")
	}
	name := r.URL.Query().Get("stream")
	stream = s.graph.stream(name)
	if stream == nil {
		var names []string
		for _, g := range s.graph.Streams {
			names = append(names, g.Name)
		}
		return nil, 0, http.StatusNotFound, fmt.Errorf("no stream %s; there are %s", printable(name), strings.Join(names, ", "))
	}
	if s.Taps == nil && stream.Unit != "" {
		return nil, 0, http.StatusNotFound, fmt.Errorf("stream %s is inside a task and never reaches Kafka", stream.Name)
	}
	rows = tapRows
	if text := r.URL.Query().Get("rows"); text != "" {
		rows, err = strconv.ParseInt(text, 10, 64)
		if err != nil || rows < 1 || rows > tapRowsMax {
			return nil, 0, http.StatusBadRequest, fmt.Errorf("rows=%s: want a number from 1 to %d", printable(text), tapRowsMax)
		}
	}
	return stream, rows, 0, nil
}

// tapWriter writes records in one of two forms.
type tapWriter struct {
	w     http.ResponseWriter
	out   *http.ResponseController
	left  int64 // rows
	wait  time.Duration
	arrow bool

	schema *arrow.Schema
	ipc    *ipc.Writer
	rows   *rowWriter
}

func (t *tapWriter) flush() error {
	if err := t.out.SetWriteDeadline(time.Now().Add(t.wait)); err != nil {
		return err
	}
	return t.out.Flush()
}

// copy writes records (and releases them), at its pace, until enough rows are written, the records end or nobody reads.
func (t *tapWriter) copy(ctx context.Context, records <-chan arrow.Record) {
	defer func() {
		if t.ipc != nil {
			_ = t.ipc.Close() // of who is gone
		}
	}()
	for t.left > 0 {
		rec, ok := <-records
		if !ok {
			return
		}
		before := t.left
		err := t.write(rec)
		rec.Release()
		if err != nil {
			return
		}
		select {
		case <-time.After(time.Duration(before-t.left) * time.Second / tapRowsPerSecond): // what passes meanwhile finds a full queue, and is counted
		case <-ctx.Done():
			return
		}
	}
}

func (t *tapWriter) write(rec arrow.Record) error {
	if t.schema == nil {
		t.schema = rec.Schema()
		t.rows = newRowWriter(t.schema)
		if t.arrow {
			t.ipc = ipc.NewWriter(t.w, ipc.WithSchema(t.schema), ipc.WithDictionaryDeltas(false))
		}
	}
	if !rec.Schema().Equal(t.schema) {
		return fmt.Errorf("the schema changed")
	}
	n := min(rec.NumRows(), t.left)
	t.left -= n
	if t.arrow {
		part := rec.NewSlice(0, n)
		defer part.Release()
		if err := t.ipc.Write(part); err != nil {
			return err
		}
		return t.flush()
	}
	for i := range int(n) {
		if _, err := t.w.Write(t.rows.row(rec, i)); err != nil {
			return err
		}
		if i%tapFlush == tapFlush-1 {
			if err := t.flush(); err != nil {
				return err
			}
		}
	}
	return t.flush()
}
