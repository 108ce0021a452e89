// Package payloadtest makes payloads for tests.
package payloadtest

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"hearthline/flow"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

// Now is when the readings arrive.
var Now = flow.MicrosOf(time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC))

// Arrow is an Arrow IPC stream of three readings.
func Arrow(t testing.TB, opts ...ipc.Option) []byte {
	t.Helper()
	mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
	defer mem.AssertSize(t, 0)
	b := flow.NewEventBuilder()
	for i := range 3 {
		b.Append(&flow.Event{Time: Now.Add(-time.Duration(i) * time.Minute), Received: Now, Home: "h1", Device: fmt.Sprint("d", i), Metric: "power", Value: float64(i), HasValue: true, Unit: "W", Seq: int64(i), HasSeq: true, Attributes: []flow.Attribute{{Name: "a", Value: "b"}}})
	}
	rec, _ := b.Record()
	defer rec.Release()
	// Without "received": that is the gateway's to say.
	var fields []arrow.Field
	var cols []arrow.Array
	for i, f := range rec.Schema().Fields() {
		if f.Name != flow.ColReceived {
			fields, cols = append(fields, f), append(cols, rec.Column(i))
		}
	}
	out := array.NewRecord(arrow.NewSchema(fields, nil), cols, rec.NumRows())
	defer out.Release()
	var buf bytes.Buffer
	w := ipc.NewWriter(&buf, append(opts, ipc.WithSchema(out.Schema()), ipc.WithAllocator(mem))...)
	if err := w.Write(out); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
