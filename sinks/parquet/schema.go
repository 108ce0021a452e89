package parquet

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	pq "github.com/parquet-go/parquet-go"

	"hearthline/flow"
)

// layout is an Arrow schema as a Parquet one.
type layout struct {
	arrow       *arrow.Schema
	schema      *pq.Schema
	columns     []column // one an Arrow column
	leaves      int
	ipc         string // the Arrow schema as readers of Arrow expect it in the metadata
	fingerprint string
}

// column says where an Arrow column stands in the file: in one leaf column, or, for a map, in two.
type column struct {
	shape    shape
	leaf     int  // index of its first leaf column
	nullable bool // the column itself
	// itemNullable says the same of the values of a map, the items of a list.
	itemNullable bool
}

type shape uint8

const (
	flat shape = iota
	list
	keyValue
)

// newLayout says how a schema is kept. It errs on types for which Parquet has no equal.
func newLayout(schema *arrow.Schema) (*layout, error) {
	l := &layout{arrow: schema}
	nodes := make(pq.Group, schema.NumFields())
	for _, f := range schema.Fields() {
		switch _, twice := nodes[f.Name]; {
		case f.Name == "dt" || f.Name == "hour":
			return nil, fmt.Errorf("column %q: the name is taken by the folders dt=… and hour=…", f.Name)
		case twice:
			return nil, fmt.Errorf("column %q is there twice", f.Name)
		case f.Name == "" || strings.ContainsRune(f.Name, ','):
			return nil, fmt.Errorf("column %q: a name is not empty and has no comma", f.Name)
		}
		node, c, err := nodeOf(f)
		if err != nil {
			return nil, fmt.Errorf("column %q: %w", f.Name, err)
		}
		c.leaf = l.leaves
		l.leaves++
		if c.shape == keyValue {
			l.leaves++
		}
		nodes[f.Name] = node
		l.columns = append(l.columns, c)
	}
	if err := checkTime(schema); err != nil {
		return nil, err
	}
	l.schema = pq.NewSchema("row", inOrder(nodes, schema))
	var buf bytes.Buffer
	if err := ipc.NewWriter(&buf, ipc.WithSchema(schema)).Close(); err != nil {
		return nil, fmt.Errorf("encode the schema: %w", err)
	}
	sum := sha256.Sum256(buf.Bytes())
	l.ipc, l.fingerprint = base64.StdEncoding.EncodeToString(buf.Bytes()), hex.EncodeToString(sum[:8])
	return l, nil
}

func checkTime(schema *arrow.Schema) error {
	f, ok := schema.FieldsByName(flow.ColTime)
	if !ok {
		return fmt.Errorf("no column %q: files are kept by the hour of it", flow.ColTime)
	}
	if !arrow.TypeEqual(f[0].Type, flow.InstantType) {
		return fmt.Errorf("column %q is a %s; want %s", flow.ColTime, f[0].Type, flow.InstantType)
	}
	return nil
}

// ordered is a group whose fields stand in a given order. A plain group sorts them by name, and the columns of a
// file would not stand as those of the stream do.
type ordered struct {
	pq.Group
	fields []pq.Field
}

func (o ordered) Fields() []pq.Field { return o.fields }

func inOrder(nodes pq.Group, schema *arrow.Schema) pq.Node {
	byName := make(map[string]pq.Field, len(nodes))
	for _, f := range nodes.Fields() {
		byName[f.Name()] = f
	}
	o := ordered{Group: nodes}
	for _, f := range schema.Fields() {
		o.fields = append(o.fields, byName[f.Name])
	}
	return o
}

func nodeOf(f arrow.Field) (pq.Node, column, error) {
	c := column{nullable: f.Nullable}
	var node pq.Node
	switch t := f.Type.(type) {
	case *arrow.MapType:
		key, err := leafNode(t.KeyType())
		item, ierr := leafNode(t.ItemType())
		if err := errors.Join(err, ierr); err != nil {
			return nil, c, err
		}
		c.shape, c.itemNullable = keyValue, t.ItemField().Nullable
		node = pq.Map(key, optional(item, c.itemNullable))
	case *arrow.ListType:
		item, err := leafNode(t.Elem())
		if err != nil {
			return nil, c, err
		}
		c.shape, c.itemNullable = list, t.ElemField().Nullable
		node = pq.List(optional(item, c.itemNullable))
	default:
		leaf, err := leafNode(f.Type)
		if err != nil {
			return nil, c, err
		}
		node = leaf
	}
	return optional(node, f.Nullable), c, nil
}

func optional(n pq.Node, yes bool) pq.Node {
	if yes {
		return pq.Optional(n)
	}
	return n
}

// leafNode says how values of a type are kept and encoded. Instants and counters rise slowly, so their differences
// are kept; strings that were dictionary-encoded stay so.
func leafNode(t arrow.DataType) (pq.Node, error) {
	switch t := t.(type) {
	case *arrow.TimestampType:
		units := map[arrow.TimeUnit]pq.TimeUnit{arrow.Millisecond: pq.Millisecond, arrow.Microsecond: pq.Microsecond, arrow.Nanosecond: pq.Nanosecond}
		unit, ok := units[t.Unit]
		if !ok {
			return nil, fmt.Errorf("%s: Parquet has no unit of seconds; use %s", t, flow.InstantType)
		}
		return pq.Encoded(pq.TimestampAdjusted(unit, t.TimeZone != ""), &pq.DeltaBinaryPacked), nil
	case *arrow.DictionaryType:
		wide := t.IndexType.ID() == arrow.INT32 || t.IndexType.ID() == arrow.INT64
		if t.ValueType.ID() != arrow.STRING || !wide {
			return nil, fmt.Errorf("%s is not supported; want %s", t, flow.KeyType)
		}
		return pq.Encoded(pq.String(), &pq.RLEDictionary), nil
	case *arrow.FixedSizeBinaryType:
		return pq.Leaf(pq.FixedLenByteArrayType(t.ByteWidth)), nil
	}
	switch t.ID() {
	case arrow.STRING, arrow.LARGE_STRING:
		return pq.String(), nil
	case arrow.BINARY, arrow.LARGE_BINARY:
		return pq.Leaf(pq.ByteArrayType), nil
	case arrow.BOOL:
		return pq.Leaf(pq.BooleanType), nil
	case arrow.INT8, arrow.INT16:
		return pq.Int(t.(arrow.FixedWidthDataType).BitWidth()), nil
	case arrow.INT32, arrow.INT64:
		return pq.Encoded(pq.Int(t.(arrow.FixedWidthDataType).BitWidth()), &pq.DeltaBinaryPacked), nil
	case arrow.UINT8, arrow.UINT16, arrow.UINT32, arrow.UINT64:
		return pq.Uint(t.(arrow.FixedWidthDataType).BitWidth()), nil
	case arrow.FLOAT32:
		return pq.Leaf(pq.FloatType), nil
	case arrow.FLOAT64:
		return pq.Leaf(pq.DoubleType), nil
	case arrow.DATE32:
		return pq.Date(), nil
	}
	return nil, fmt.Errorf("type %s is not supported", t)
}

// decodeSchema reads what newLayout wrote as layout.ipc. Arrow's reader allocates by the lengths that it finds, and a
// damaged one may be larger than any memory: the fingerprint is compared before it sees them.
func decodeSchema(s, fingerprint string) (*arrow.Schema, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("decode the schema: %w", err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:8]) != fingerprint {
		return nil, errors.New("decode the schema: it is damaged, or not ours: its fingerprint differs")
	}
	r, err := ipc.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("decode the schema: %w", err)
	}
	defer r.Release()
	return r.Schema(), nil
}
