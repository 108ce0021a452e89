package where

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// rows are six; the last is NULL in all that may be.
func rows() arrow.Record {
	b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{
		{Name: "time", Type: flow.InstantType}, {Name: "device", Type: flow.KeyType, Nullable: true}, {Name: "text", Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: "value", Type: arrow.PrimitiveTypes.Float64, Nullable: true}, {Name: "seq", Type: arrow.PrimitiveTypes.Int64, Nullable: true},
		{Name: "ok", Type: arrow.FixedWidthTypes.Boolean, Nullable: true}, {Name: "attributes", Type: flow.AttributesType, Nullable: true},
	}, nil))
	defer b.Release()
	for i := range 6 {
		b.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(1_704_067_200_000_000 + i*60_000_000)) // 2024-01-01 00:00 + i minutes
		if i == 5 {
			for _, f := range b.Fields()[1:] {
				f.AppendNull()
			}
			continue
		}
		if err := b.Field(1).(*array.BinaryDictionaryBuilder).AppendString([]string{"lamp", "door", "d'or"}[i%3]); err != nil {
			panic(err)
		}
		b.Field(2).(*array.StringBuilder).Append(fmt.Sprint("text ", i))
		b.Field(3).(*array.Float64Builder).Append(float64(i) + 0.5)
		b.Field(4).(*array.Int64Builder).Append(int64(9_007_199_254_740_992 + i)) // more than a float64 tells apart
		b.Field(5).(*array.BooleanBuilder).Append(i%2 == 0)
		b.Field(6).AppendNull()
	}
	return b.NewRecord()
}

func TestRows(t *testing.T) {
	rec := rows()
	defer rec.Release()
	for condition, want := range map[string][]int{
		"value > 2":                                  {2, 3, 4},
		"VALUE >= 2.5 and value < 4":                 {2, 3},
		"value = 1.5 OR value = 3.5 AND ok":          {1},
		"(value = 1.5 OR value = 3.5) AND NOT ok":    {1, 3},
		"NOT value > 2":                              {0, 1}, // NULL is neither
		"NOT (value > 2 OR ok)":                      {1},
		"value > 2 OR value <= 2":                    {0, 1, 2, 3, 4},
		"value IS NULL":                              {5},
		"value IS NOT NULL AND value <> 0.5":         {1, 2, 3, 4},
		"value IS NULL OR value < 1":                 {0, 5},
		"device = 'lamp'":                            {0, 3},
		"device = 'd''or'":                           {2},
		`"device" != 'lamp'`:                         {1, 2, 4},
		"device IN ('lamp', 'door')":                 {0, 1, 3, 4},
		"device NOT IN ('lamp', 'door')":             {2},
		"device LIKE 'd%r'":                          {1, 2, 4},
		"text NOT LIKE '%_ 3'":                       {0, 1, 2, 4},
		"text LIKE 'text _' AND text > 'text 2'":     {3, 4},
		"value BETWEEN 1.5 AND 2.5 AND ok":           {2},
		"value NOT BETWEEN 1.5 AND 2.5":              {0, 3, 4},
		"seq = 9007199254740993":                     {1},
		"seq > 9007199254740993.5e0":                 {3, 4}, // as float64
		"ok = false":                                 {1, 3},
		"ok <> false":                                {0, 2, 4},
		"time >= '2024-01-01T00:04:00Z'":             {4, 5},
		"time < '2024-01-01 00:02'":                  {0, 1},
		"time BETWEEN '2024-01-01' AND '2024-01-01'": {0},
		"attributes IS NULL":                         {0, 1, 2, 3, 4, 5},
		"value > -1e3 AND value < .75":               {0},
	} {
		f, err := Parse(condition, rec.Schema())
		if err != nil {
			t.Errorf("%s: %v", condition, err)
			continue
		}
		if got := f.Rows(rec); !slices.Equal(got, want) {
			t.Errorf("%s: rows %v, want %v", condition, got, want)
		}
	}
	part := rec.NewSlice(2, 6)
	defer part.Release()
	f, err := Parse("device = 'lamp' OR value IS NULL", rec.Schema())
	if err != nil {
		t.Fatal(err)
	}
	if got := f.Rows(part); !slices.Equal(got, []int{1, 3}) {
		t.Errorf("of a part: %v", got)
	}
}

func TestErrors(t *testing.T) {
	for condition, want := range map[string]string{
		"":                         "character 1: it ends here; want a column: time, device",
		"valu > 3":                 `character 1: there is no column "valu"; there are time, device`,
		"value > 'high'":           `character 9: "high"; want a number, as value holds`,
		"device = lamp":            `character 10: "lamp"; want a text in 'single quotes', as device holds`,
		`device = "lamp"`:          `character 10: "lamp"; want a text in 'single quotes'`,
		"value > 3 metric = 3":     `character 11: "metric"; want AND, OR, or the end`,
		"value > 3 && value < 5":   `character 11: "&& value <`,
		"value == 3":               `character 8: "="; want a number`,
		"value":                    "character 6: it ends here; want =, <>",
		"(value > 3":               "character 11: it ends here; want )",
		"value IN 3":               `character 10: "3"; want (`,
		"value IN (3":              "character 12: it ends here; want , or )",
		"value LIKE '3'":           "value holds no texts",
		"value NOT 3":              "want IN, BETWEEN or LIKE",
		"time > 'yesterday'":       "want a time, as time holds",
		"ok = 1":                   "true or false, as ok holds",
		"attributes = 'a'":         "attributes is a map<utf8, utf8, items_nullable>, which is not compared here; --sql can",
		"text = 'größer":           `character 8: "'grö`,
		strings.Repeat("(", 200):   "more than 100 parentheses",
		strings.Repeat(" ", 20000): "at most 16384",
	} {
		rec := rows()
		if _, err := Parse(condition, rec.Schema()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %q", condition, err, want)
		}
		rec.Release()
	}
}

// FuzzParse: whatever is asked, the answer is an error or a filter that works.
func FuzzParse(f *testing.F) {
	f.Add("value > 2 AND NOT (device LIKE 'd%' OR time BETWEEN '2024-01-01' AND '2024-01-02')")
	f.Add(`"a""b" IN (1, -2.5e7) or ok is not null`)
	rec := rows()
	f.Fuzz(func(t *testing.T, condition string) {
		filter, err := Parse(condition, rec.Schema())
		if err != nil {
			return
		}
		if rows := filter.Rows(rec); !slices.IsSorted(rows) || len(rows) > int(rec.NumRows()) {
			t.Fatalf("%q: %v", condition, rows)
		}
	})
}
