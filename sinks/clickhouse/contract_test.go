package clickhouse

import (
	"context"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
	"hearthline/sinks/sinktest"
)

func TestContractOfSinks(t *testing.T) {
	novel := arrow.NewSchema([]arrow.Field{at("time"), key("home"), floatN("x"), {Name: "note", Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: "parts", Type: arrow.ListOf(arrow.PrimitiveTypes.Float64)}}, nil)
	for stream, schema := range map[string]*arrow.Schema{"readings": readingsSchema, "novel": novel} {
		t.Run(stream, func(t *testing.T) {
			sinktest.Run(t, func(t *testing.T) sinktest.Place { return contractPlace(t, stream, schema) })
		})
	}
}

// contractPlace is a database of its own.
func contractPlace(t *testing.T, stream string, schema *arrow.Schema) sinktest.Place {
	first := openSink(t)
	return sinktest.Place{
		Stream:    stream,
		Schema:    schema,
		NeedsTime: true,
		Sink: func() flow.Sink {
			s := newSink(t)
			s.Database = first.Database
			t.Cleanup(func() { s.Close() }) // also those that the suite leaves as if they had crashed
			return s
		},
		Rows: func(context.Context) ([]sinktest.Row, error) {
			var rows []sinktest.Row
			err := selectArrow(first, "SELECT * FROM "+stream, func(rec arrow.Record) { rows = append(rows, sinktest.Values(rec)...) })
			return rows, err
		},
		Stored: func(row sinktest.Row) sinktest.Row {
			for _, f := range schema.Fields() {
				if row[f.Name] != nil {
					continue
				}
				// Names that are null are kept as "", texts of readings are names here, attributes that are null are none.
				switch {
				case f.Type.ID() == arrow.DICTIONARY || stream == "readings" && f.Type.ID() == arrow.STRING:
					row[f.Name] = ""
				case f.Type.ID() == arrow.MAP:
					row[f.Name] = map[string]string{}
				}
			}
			return row
		},
	}
}
