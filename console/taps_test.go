package console

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

func TestTapsGiveWhatPasses(t *testing.T) {
	mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
	defer mem.AssertSize(t, 0)
	var taps Taps
	offer := func(stream string, rows int) {
		rec := eventRecord(t, mem, rows, "d")
		defer rec.Release()
		taps.Offer(stream, 0, rec)
	}
	offer("clean", 1) // nobody looks
	ctx, cancel := context.WithCancel(context.Background())
	records, dropped := taps.Watch(ctx, "clean")
	offer("clean", 2)
	offer("other", 3)
	offer("clean", 4)
	for _, want := range []int64{2, 4} {
		rec := <-records
		if rec.NumRows() != want {
			t.Errorf("%d rows; want %d", rec.NumRows(), want)
		}
		rec.Release()
	}
	for range queueMax + 5 {
		offer("clean", 10)
	}
	if dropped() != 50 {
		t.Errorf("%d rows dropped; want 50", dropped())
	}
	cancel()
	for rec := range records { // closed, and what was queued is released
		rec.Release()
	}
	eventually(t, "nobody to look", func() bool { return taps.lookers.Load() == nil })
	offer("clean", 1)
}

// Offer must not wait: not for lookers that never read, nor for those that come and go.
func TestTapsNeverWait(t *testing.T) {
	mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
	defer mem.AssertSize(t, 0)
	var taps Taps
	rec := eventRecord(t, mem, 5, "d")
	defer rec.Release()
	idle, stopIdle := context.WithCancel(context.Background())
	idleRecords, dropped := taps.Watch(idle, "clean") // never reads
	var edges, lookers sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		lookers.Add(1)
		go func() {
			defer lookers.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithCancel(context.Background())
				records, _ := taps.Watch(ctx, []string{"clean", "other"}[i%2])
				for range i {
					select {
					case r := <-records:
						r.Release()
					case <-stop:
					}
				}
				cancel()
				for r := range records {
					r.Release()
				}
			}
		}()
	}
	const each = 20_000
	for range 3 {
		edges.Add(1)
		go func() {
			defer edges.Done()
			for i := range each {
				taps.Offer([]string{"clean", "other"}[i%2], 0, rec)
			}
		}()
	}
	done := make(chan struct{})
	go func() { edges.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("edges wait for those who look")
	}
	close(stop)
	lookers.Wait()
	if want := int64(3*each/2-queueMax) * 5; dropped() != want {
		t.Errorf("%d rows dropped; want %d", dropped(), want)
	}
	stopIdle()
	for r := range idleRecords {
		r.Release()
	}
}

func TestOfferCostsNothing(t *testing.T) {
	var taps Taps
	rec := eventRecord(t, memory.DefaultAllocator, 1, "d")
	defer rec.Release()
	if n := testing.AllocsPerRun(1000, func() { taps.Offer("clean", 0, rec) }); n != 0 {
		t.Errorf("%v allocations when nobody looks", n)
	}
}

func BenchmarkOffer(b *testing.B) {
	rec := eventRecord(b, memory.DefaultAllocator, 1, "d")
	defer rec.Release()
	b.Run("nobody looks", func(b *testing.B) {
		var taps Taps
		for b.Loop() {
			taps.Offer("clean", 0, rec)
		}
	})
	b.Run("a slow one looks", func(b *testing.B) {
		var taps Taps
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		taps.Watch(ctx, "clean")
		for b.Loop() {
			taps.Offer("clean", 0, rec)
		}
	})
}

// offering puts records on a stream again and again until the test ends.
func offering(t *testing.T, taps *Taps, stream string, recs ...arrow.Record) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, rec := range recs {
				taps.Offer(stream, 0, rec)
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		for _, rec := range recs {
			rec.Release()
		}
	})
}

func TestTapAsJSON(t *testing.T) {
	s := demo(newWorld(homesPlan()))
	base := serve(t, s)
	const evil = "<script>alert(1)</script>\u2028\"\\"
	offering(t, s.Taps, "clean", eventRecord(t, memory.DefaultAllocator, 3, evil))
	res, err := http.Get(base + "/api/tap?stream=clean&rows=7")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if ct := res.Header.Get("Content-Type"); ct != ndjson {
		t.Fatalf("Content-Type %q", ct)
	}
	lines, n := bufio.NewScanner(res.Body), 0
	for ; lines.Scan(); n++ {
		if strings.ContainsAny(lines.Text(), "<>") {
			t.Errorf("not escaped: %s", lines.Text())
		}
		var row struct {
			Time       time.Time
			Device     string
			Value      float64
			Text       *string
			Seq        int64
			Attributes map[string]string
		}
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		if row.Device != evil || row.Text != nil || row.Seq != int64(n%3) || row.Attributes["firmware"] != "2.1.7" || time.Since(row.Time) > time.Minute {
			t.Errorf("row %d: %s", n, lines.Text())
		}
	}
	if n != 7 {
		t.Errorf("%d rows; want 7", n)
	}
	if res.Trailer.Get("Hearthline-Dropped") == "" {
		t.Error("no trailer says how many rows were dropped")
	}
}

func TestTapAsArrow(t *testing.T) {
	s := demo(newWorld(homesPlan()))
	base := serve(t, s)
	offering(t, s.Taps, "clean", eventRecord(t, memory.DefaultAllocator, 3, "first"), eventRecord(t, memory.DefaultAllocator, 2, "second"))
	r, _ := http.NewRequest("GET", base+"/api/tap?stream=clean&rows=9", nil)
	r.Header.Set("Accept", arrowStream)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	reader, err := ipc.NewReader(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Release()
	if !reader.Schema().Equal(flow.EventSchema) {
		t.Errorf("schema %v", reader.Schema())
	}
	rows := int64(0)
	for reader.Next() {
		rec := reader.Record()
		rows += rec.NumRows()
		device, err := flow.StringsOf(rec, flow.ColDevice)
		if err != nil {
			t.Fatal(err)
		}
		seq, err := flow.Column[*array.Int64](rec, flow.ColSeq)
		if err != nil {
			t.Fatal(err)
		}
		want := map[bool]string{true: "first", false: "second"}[rec.NumRows() == 3 || rows == 9 && rec.NumRows() == 1]
		if rows < 9 && device.Value(0) != want || seq.Value(0) != 0 {
			t.Errorf("a batch of %d rows of %s from %d", rec.NumRows(), device.Value(0), seq.Value(0))
		}
	}
	if reader.Err() != nil || rows != 9 {
		t.Errorf("%d rows, %v; want 9", rows, reader.Err())
	}
}

// Whoever looks at an edge on which millions of rows pass has a small part of the processor, however fast it reads, and asks again.
func TestTapHasAPace(t *testing.T) {
	s := demo(newWorld(homesPlan()))
	base := serve(t, s)
	offering(t, s.Taps, "clean", eventRecord(t, memory.DefaultAllocator, 20_000, "d"))
	begun := time.Now()
	for range 2 {
		r, err := http.NewRequest("GET", base+"/api/tap?stream=clean&rows=50000", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept", arrowStream)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, res.Body); err != nil || n < 100_000 {
			t.Errorf("%d bytes, %v", n, err)
		}
		res.Body.Close()
		if res.Trailer.Get("Hearthline-Dropped") == "0" {
			t.Error("nothing is said of the rows that were not shown")
		}
	}
	if took := time.Since(begun); took < time.Second {
		t.Errorf("100,000 rows in %v; want a second at least", took)
	}
}

func TestTapRefusals(t *testing.T) {
	base := serve(t, demo(newWorld(homesPlan())))
	for query, want := range map[string]string{
		"stream=reddings":          `no stream "reddings"; there are raw, `,
		"":                         `no stream ""`,
		"stream=clean&rows=0":      "want a number from 1 to 100000",
		"stream=clean&rows=1e3":    "want a number",
		"stream=clean&rows=-1":     "want a number",
		"stream=clean&rows=100001": "want a number",
	} {
		if status, body, _ := get(t, base+"/api/tap?"+query); status/100 != 4 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %q; want %q", query, status, body, want)
		}
	}
}

func TestTapLimit(t *testing.T) {
	s := demo(newWorld(homesPlan()))
	base := serve(t, s)
	var open []*http.Response
	for range tapsMax {
		res, err := http.Get(base + "/api/tap?stream=clean")
		if err != nil || res.StatusCode != 200 {
			t.Fatal(res, err)
		}
		open = append(open, res)
	}
	if status, body, _ := get(t, base+"/api/tap?stream=clean"); status != 503 || !strings.Contains(body, "try again") {
		t.Errorf("one too many: %d %q", status, body)
	}
	for _, res := range open {
		res.Body.Close()
	}
	eventually(t, "all slots to be free", func() bool { return len(s.looking) == 0 && s.Taps.lookers.Load() == nil })
}

// A stream that is on Kafka is read from there, for each who looks.
func TestTapReadsKafkaItself(t *testing.T) {
	mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
	defer mem.AssertSize(t, 0)
	s := demo(newWorld(homesPlan()))
	var ended sync.WaitGroup
	s.Tail = func(ctx context.Context, stream string, give func(int32, arrow.Record)) error {
		ended.Add(1)
		defer ended.Done()
		if stream == "alerts" {
			return errors.New("kafka is away")
		}
		rec := eventRecord(t, mem, 4, stream)
		defer rec.Release()
		for ctx.Err() == nil {
			give(1, rec)
			select {
			case <-ctx.Done():
			case <-time.After(time.Millisecond):
			}
		}
		return ctx.Err()
	}
	base := serve(t, s)
	status, body, _ := get(t, base+"/api/tap?stream=readings&rows=6")
	if status != 200 || strings.Count(body, "\n") != 6 || strings.Count(body, `"device":"readings"`) != 6 {
		t.Errorf("%d %s", status, body)
	}
	res, err := http.Get(base + "/api/tap?stream=alerts&rows=6")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); len(b) != 0 || res.Trailer.Get("Hearthline-Error") != "kafka is away" {
		t.Errorf("%q, trailer %v", b, res.Trailer)
	}
	ended.Wait()
}

func TestRowValues(t *testing.T) {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "f", Type: arrow.PrimitiveTypes.Float64}, {Name: "g", Type: arrow.PrimitiveTypes.Float32},
		{Name: "i", Type: arrow.PrimitiveTypes.Int32}, {Name: "u", Type: arrow.PrimitiveTypes.Uint8},
		{Name: "b", Type: arrow.FixedWidthTypes.Boolean}, {Name: "l", Type: arrow.ListOf(arrow.PrimitiveTypes.Int64)},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	b.Field(0).(*array.Float64Builder).AppendValues([]float64{1.5, math.NaN(), math.Inf(-1)}, nil)
	b.Field(1).(*array.Float32Builder).AppendValues([]float32{2, 0, 1}, []bool{true, false, true})
	b.Field(2).(*array.Int32Builder).AppendValues([]int32{-3, 0, 1}, nil)
	b.Field(3).(*array.Uint8Builder).AppendValues([]uint8{255, 0, 1}, nil)
	b.Field(4).(*array.BooleanBuilder).AppendValues([]bool{true, false, true}, nil)
	for range 3 {
		b.Field(5).(*array.ListBuilder).Append(true)
		b.Field(5).(*array.ListBuilder).ValueBuilder().(*array.Int64Builder).Append(7)
	}
	rec := b.NewRecord()
	defer rec.Release()
	w := newRowWriter(schema)
	for i, want := range []string{
		`{"f":1.5,"g":2,"i":-3,"u":255,"b":true,"l":[7]}`,
		`{"f":"NaN","g":null,"i":0,"u":0,"b":false,"l":[7]}`,
		`{"f":"-Inf","g":1,"i":1,"u":1,"b":true,"l":[7]}`,
	} {
		if got := strings.TrimSpace(string(w.row(rec, i))); got != want {
			t.Errorf("row %d: %s; want %s", i, got, want)
		}
	}
}

func FuzzRow(f *testing.F) {
	for _, s := range []string{"", "kitchen", "<b>\u2028", "\xff\xfe", `"\`, "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if len(name) > 1<<16 {
			return
		}
		rec := eventRecord(t, memory.DefaultAllocator, 1, name)
		defer rec.Release()
		var row struct{ Device string }
		b := newRowWriter(rec.Schema()).row(rec, 0)
		if err := json.Unmarshal(b, &row); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if utf8.ValidString(name) && row.Device != name {
			t.Fatalf("%q became %q", name, row.Device)
		}
		if strings.ContainsAny(string(b[:len(b)-1]), "<>\n") {
			t.Fatalf("not escaped: %s", b)
		}
	})
}
