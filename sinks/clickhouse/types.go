package clickhouse

import (
	"fmt"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
)

// columnType is the ClickHouse type that a table made for a stream gets for an Arrow field. A name (KeyType) that is null
// becomes an empty string rather than a third state that every query would have to think of; other nulls stay nulls.
func columnType(f arrow.Field) (string, error) {
	t, err := plainType(f.Type)
	if err != nil {
		return "", err
	}
	if f.Nullable && nullableType(f.Type) {
		return "Nullable(" + t + ")", nil
	}
	return t, nil
}

// nullableType says whether a null of type t is kept as such.
func nullableType(t arrow.DataType) bool {
	switch t.ID() {
	case arrow.DICTIONARY, arrow.MAP, arrow.LIST, arrow.FIXED_SIZE_LIST:
		return false
	}
	return true
}

func plainType(t arrow.DataType) (string, error) {
	switch t := t.(type) {
	case *arrow.TimestampType:
		return fmt.Sprintf("DateTime64(%d, 'UTC')", 3*int(t.Unit)), nil
	case *arrow.DictionaryType:
		if t.ValueType.ID() == arrow.STRING && t.IndexType.ID() == arrow.INT32 {
			return "LowCardinality(String)", nil
		}
	case *arrow.MapType:
		if key := t.KeyType(); stringLike(key) {
			item, err := columnType(arrow.Field{Type: t.ItemType(), Nullable: t.ItemField().Nullable && t.ItemType().ID() != arrow.STRING})
			return "Map(LowCardinality(String), " + item + ")", err
		}
	case *arrow.ListType:
		elem, err := columnType(t.ElemField())
		return "Array(" + elem + ")", err
	case *arrow.FixedSizeListType:
		elem, err := columnType(t.ElemField())
		return "Array(" + elem + ")", err
	}
	if name, ok := plainTypes[t.ID()]; ok {
		return name, nil
	}
	return "", fmt.Errorf("a %s has no column type in ClickHouse here; send it as a number, a string, a list of these, or a map of strings", t)
}

// plainTypes are the types whose values have the same bytes in Arrow and in ClickHouse, but for bool and strings.
var plainTypes = map[arrow.Type]string{
	arrow.BOOL: "Bool",
	arrow.INT8: "Int8", arrow.INT16: "Int16", arrow.INT32: "Int32", arrow.INT64: "Int64",
	arrow.UINT8: "UInt8", arrow.UINT16: "UInt16", arrow.UINT32: "UInt32", arrow.UINT64: "UInt64",
	arrow.FLOAT32: "Float32", arrow.FLOAT64: "Float64",
	arrow.DATE32: "Date32",
	arrow.STRING: "String", arrow.LARGE_STRING: "String", arrow.BINARY: "String",
}

// stringLike types can be read by stringAt.
func stringLike(t arrow.DataType) bool {
	switch t := t.(type) {
	case *arrow.DictionaryType:
		return t.ValueType.ID() == arrow.STRING && t.IndexType.ID() == arrow.INT32
	case *arrow.StringType, *arrow.LargeStringType, *arrow.BinaryType:
		return true
	}
	return false
}

// fixedWidth is the size in bytes of a value of a type in plainTypes, or of a timestamp; 0 for others.
func fixedWidth(t arrow.DataType) int {
	if f, ok := t.(arrow.FixedWidthDataType); ok && t.ID() != arrow.BOOL {
		return f.BitWidth() / 8
	}
	return 0
}

// inner cuts "Name(args)" to args.
func inner(t, name string) (string, bool) {
	if rest, ok := strings.CutPrefix(t, name+"("); ok {
		return strings.CutSuffix(rest, ")")
	}
	return "", false
}

// mapTypes cuts "K, V" at the comma that is in no brackets.
func mapTypes(args string) (key, value string, ok bool) {
	depth := 0
	for i, c := range args {
		switch c {
		case '(':
			depth++
		case ')':
			depth--
		case ',':
			if depth == 0 {
				return args[:i], strings.TrimSpace(args[i+1:]), true
			}
		}
	}
	return "", "", false
}

// sameInstant says whether a DateTime64 of the server counts in the unit of t; its time zone is for display only.
func sameInstant(t *arrow.TimestampType, server string) bool {
	args, ok := inner(server, "DateTime64")
	if !ok {
		return false
	}
	precision, _, _ := strings.Cut(args, ",")
	return strings.TrimSpace(precision) == fmt.Sprint(3*int(t.Unit))
}

// stringBytesOf is the size of the strings in rows [from, to) of a, at any depth, but those in dictionaries.
func stringBytesOf(a arrow.Array, from, to int) int64 {
	if from == to {
		return 0
	}
	switch a := a.(type) {
	case *array.String:
		return int64(a.ValueOffset(to) - a.ValueOffset(from))
	case *array.LargeString:
		return a.ValueOffset(to) - a.ValueOffset(from)
	case *array.Binary:
		return a.ValueOffset64(to) - a.ValueOffset64(from)
	case array.ListLike:
		bounds := offsetsOf(a)
		first, _ := bounds(from)
		_, last := bounds(to - 1)
		if m, ok := a.(*array.Map); ok {
			return stringBytesOf(m.Keys(), first, last) + stringBytesOf(m.Items(), first, last)
		}
		return stringBytesOf(a.ListValues(), first, last)
	}
	return 0
}
