package flow

import (
	"fmt"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
)

// Events looks at a record by the columns of [EventSchema], wherever they stand and whatever other columns
// stand beside them. It owns nothing: it is valid as long as the record is.
type Events struct {
	Time, Received       []arrow.Timestamp // µs UTC, one a row, never null
	Home, Device, Metric Strings
	Value                *array.Float64
	Text                 *array.String
	Unit                 Strings
	Seq                  *array.Int64
	Attributes           *array.Map
}

// EventsOf finds the event columns of rec. A missing column or one of another type is an [ErrBad].
func EventsOf(rec arrow.Record) (Events, error) {
	var e Events
	err := firstError(
		func() error { return instants(rec, ColTime, &e.Time) },
		func() error { return instants(rec, ColReceived, &e.Received) },
		func() error { return readStrings(rec, ColHome, &e.Home) },
		func() error { return readStrings(rec, ColDevice, &e.Device) },
		func() error { return readStrings(rec, ColMetric, &e.Metric) },
		func() error { return column(rec, ColValue, &e.Value) },
		func() error { return column(rec, ColText, &e.Text) },
		func() error { return readStrings(rec, ColUnit, &e.Unit) },
		func() error { return column(rec, ColSeq, &e.Seq) },
		func() error { return column(rec, ColAttributes, &e.Attributes) },
	)
	return e, err
}

func firstError(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// Column finds the column of rec called name and checks that it is an A, say *array.Float64.
// A missing column or one of another type is an [ErrBad].
func Column[A arrow.Array](rec arrow.Record, name string) (A, error) {
	var a A
	err := column(rec, name, &a)
	return a, err
}

func column[A arrow.Array](rec arrow.Record, name string, to *A) error {
	at := rec.Schema().FieldIndices(name)
	if len(at) == 0 {
		return Badf("no column %q", name)
	}
	a, ok := rec.Column(at[0]).(A)
	if !ok {
		return Badf("column %q is a %s; want %s", name, rec.Column(at[0]).DataType(), typeName[A]())
	}
	*to = a
	return nil
}

func typeName[A any]() string { var a A; return fmt.Sprintf("%T", a) }

func instants(rec arrow.Record, name string, to *[]arrow.Timestamp) error {
	var a *array.Timestamp
	if err := column(rec, name, &a); err != nil {
		return err
	}
	if !arrow.TypeEqual(a.DataType(), InstantType) {
		return Badf("column %q is a %s; want %s", name, a.DataType(), InstantType)
	}
	*to = a.TimestampValues()
	return nil
}

// Instants finds a column of [InstantType] by name: µs since 1970 UTC, one value a row.
func Instants(rec arrow.Record, name string) ([]arrow.Timestamp, error) {
	var v []arrow.Timestamp
	err := instants(rec, name, &v)
	return v, err
}

// Strings reads a column of strings, dictionary-encoded or not, the same way.
type Strings struct {
	plain  *array.String
	dict   *array.Dictionary
	values *array.String // the dictionary of dict
}

// StringsOf finds a column of strings by name, encoded as [KeyType] or as plain utf8.
func StringsOf(rec arrow.Record, name string) (Strings, error) {
	var s Strings
	err := readStrings(rec, name, &s)
	return s, err
}

func readStrings(rec arrow.Record, name string, to *Strings) error {
	at := rec.Schema().FieldIndices(name)
	if len(at) == 0 {
		return Badf("no column %q", name)
	}
	switch a := rec.Column(at[0]).(type) {
	case *array.String:
		*to = Strings{plain: a}
		return nil
	case *array.Dictionary:
		if v, ok := a.Dictionary().(*array.String); ok {
			*to = Strings{dict: a, values: v}
			return nil
		}
	}
	return Badf("column %q is a %s; want %s or utf8", name, rec.Column(at[0]).DataType(), KeyType)
}

// Len is the number of rows.
func (s Strings) Len() int {
	if s.dict != nil {
		return s.dict.Len()
	}
	return s.plain.Len()
}

// IsNull says whether row i has no string.
func (s Strings) IsNull(i int) bool {
	if s.dict != nil {
		return s.dict.IsNull(i)
	}
	return s.plain.IsNull(i)
}

// Value is the string of row i, "" where it is null. It borrows the record's memory: clone what is kept.
func (s Strings) Value(i int) string {
	if s.IsNull(i) {
		return ""
	}
	if s.dict != nil {
		return s.values.Value(s.dict.GetValueIndex(i))
	}
	return s.plain.Value(i)
}

// Dictionary gives the distinct strings and, by Index, which of them a row holds, so that work can be done
// once a key instead of once a row. ok is false for a plain column. Two entries may hold the same string.
func (s Strings) Dictionary() (values *array.String, ok bool) { return s.values, s.dict != nil }

// Index is the place of row i's string in the dictionary. Only for columns whose Dictionary is ok, and rows
// that are not null.
func (s Strings) Index(i int) int { return s.dict.GetValueIndex(i) }
