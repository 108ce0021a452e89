package flow

import (
	"fmt"
	"slices"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

// ColumnType is what readers of a stream count on of a column.
type ColumnType struct {
	Name     string
	Type     string // as Arrow writes it
	Nullable bool
}

// ColumnTypes gives the columns of a schema.
func ColumnTypes(s *arrow.Schema) []ColumnType {
	var all []ColumnType
	for _, f := range s.Fields() {
		all = append(all, ColumnType{f.Name, f.Type.String(), f.Nullable})
	}
	return all
}

// Breaks says what of a change breaks whoever counts on the columns as they were, and nil if nothing does. New columns that may be
// null break nobody, and their order means nothing: columns are found by name. Everything else needs a new stream.
func Breaks(was, now []ColumnType) []string {
	var why []string
	find := func(all []ColumnType, name string) (ColumnType, bool) {
		i := slices.IndexFunc(all, func(c ColumnType) bool { return c.Name == name })
		if i < 0 {
			return ColumnType{}, false
		}
		return all[i], true
	}
	for _, old := range was {
		c, ok := find(now, old.Name)
		switch {
		case !ok:
			text := fmt.Sprintf("column %s is gone", old.Name)
			if i := slices.IndexFunc(now, func(c ColumnType) bool { _, had := find(was, c.Name); return !had && c.Type == old.Type }); i >= 0 {
				text += fmt.Sprintf(" (%s is new: a column that is renamed is another one)", now[i].Name)
			}
			why = append(why, text)
		case c.Type != old.Type:
			why = append(why, fmt.Sprintf("column %s was %s and is %s", old.Name, old.Type, c.Type))
		case c.Nullable && !old.Nullable:
			why = append(why, fmt.Sprintf("column %s could not be null, and can be now", old.Name))
		case !c.Nullable && old.Nullable:
			why = append(why, fmt.Sprintf("column %s could be null, and cannot be any more", old.Name))
		}
	}
	for _, c := range now {
		if _, had := find(was, c.Name); !had && !c.Nullable {
			why = append(why, fmt.Sprintf("column %s is new, and cannot be null", c.Name))
		}
	}
	return why
}

// Fit gives the rows of rec (borrowed) the columns of schema: those that it lacks as nulls, none that schema has not, in the order
// of schema. What cannot be done so is an [ErrBad]. The caller releases the result.
//
// It is how readers take what stands on a stream from before a column was added, and, until they are started anew, what is written
// after.
func Fit(rec arrow.Record, schema *arrow.Schema) (arrow.Record, error) {
	if have := rec.Schema(); have == schema || have.Equal(schema) {
		rec.Retain()
		return rec, nil
	}
	var columns []arrow.Array
	defer func() {
		for _, c := range columns {
			c.Release()
		}
	}()
	var wrong []string
	for _, f := range schema.Fields() {
		at := rec.Schema().FieldIndices(f.Name)
		switch {
		case len(at) == 0 && !f.Nullable:
			wrong = append(wrong, fmt.Sprintf("no column %q", f.Name))
		case len(at) == 0:
			columns = append(columns, array.MakeArrayOfNull(memory.DefaultAllocator, f.Type, int(rec.NumRows())))
		case !arrow.TypeEqual(rec.Column(at[0]).DataType(), f.Type):
			wrong = append(wrong, fmt.Sprintf("column %q is a %s, not a %s", f.Name, rec.Column(at[0]).DataType(), f.Type))
		case !f.Nullable && rec.Column(at[0]).NullN() > 0:
			wrong = append(wrong, fmt.Sprintf("column %q is null in %d rows, and must not be", f.Name, rec.Column(at[0]).NullN()))
		default:
			rec.Column(at[0]).Retain()
			columns = append(columns, rec.Column(at[0]))
		}
	}
	if len(wrong) > 0 {
		return nil, Badf("the batch has other columns than its stream has now: %s", strings.Join(wrong, "; "))
	}
	return array.NewRecord(schema, columns, rec.NumRows()), nil
}

// Widen is Fit for those who take any columns, but count on those of schema where they are all that there is: rec gets the columns that it
// lacks as nulls. It is given back as it is (retained) where it has a column that schema has not, or does not fit.
func Widen(rec arrow.Record, schema *arrow.Schema) arrow.Record {
	for _, f := range rec.Schema().Fields() {
		if !schema.HasField(f.Name) {
			rec.Retain()
			return rec
		}
	}
	wide, err := Fit(rec, schema)
	if err != nil {
		rec.Retain()
		return rec
	}
	return wide
}
