package window_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/compute/exec"

	"hearthline/flow"
	"hearthline/flow/flowtest"
	"hearthline/flow/window"
)

// summing gives one row a window: its rows' values in their order, and their sum. It refuses a value below 0, and panics at 666.
type summing struct{}

var sums = arrow.NewSchema([]arrow.Field{
	{Name: "home", Type: flow.KeyType}, {Name: "device", Type: flow.KeyType}, {Name: "metric", Type: flow.KeyType},
	{Name: window.ColStart, Type: flow.InstantType}, {Name: window.ColEnd, Type: flow.InstantType},
	{Name: "values", Type: arrow.BinaryTypes.String}, {Name: "sum", Type: arrow.PrimitiveTypes.Float64},
}, nil)

func (summing) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	ev, err := flow.EventsOf(in)
	if err != nil {
		return nil, err
	}
	starts, err := flow.Instants(in, window.ColStart)
	if err != nil {
		return nil, err
	}
	ends, err := flow.Instants(in, window.ColEnd)
	if err != nil {
		return nil, err
	}
	b := array.NewRecordBuilder(exec.GetAllocator(ctx), sums)
	defer b.Release()
	var bad flow.BadRows
	for i := 0; i < int(in.NumRows()); {
		var values []string
		sum, first := 0.0, i
		for ; i < int(in.NumRows()) && ev.Home.Value(i) == ev.Home.Value(first) && ev.Device.Value(i) == ev.Device.Value(first) && ends[i] == ends[first] && starts[i] == starts[first]; i++ {
			switch v := ev.Value.Value(i); {
			case v < 0:
				bad.Add(i, "below 0")
			case v == 666:
				panic(v)
			default:
				values = append(values, fmt.Sprint(v))
				sum += v
			}
		}
		for c, s := range []string{ev.Home.Value(first), ev.Device.Value(first), ev.Metric.Value(first)} {
			_ = b.Field(c).(*array.BinaryDictionaryBuilder).AppendString(s)
		}
		b.Field(3).(*array.TimestampBuilder).Append(starts[first])
		b.Field(4).(*array.TimestampBuilder).Append(ends[first])
		b.Field(5).(*array.StringBuilder).Append(strings.Join(values, " "))
		b.Field(6).(*array.Float64Builder).Append(sum)
	}
	return []flow.Output{{To: "sums", Record: b.NewRecord()}}, bad.Err()
}

func TestCases(t *testing.T) {
	flowtest.Run(t, func() flow.Stage { return summing{} }, "testdata/cases")
}
