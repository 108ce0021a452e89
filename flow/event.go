package flow

import (
	"math"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
)

// Micros is an instant: microseconds since 1970-01-01T00:00:00Z. It is the only form in which time
// travels: in columns, in batch headers and in state.
type Micros int64

// MicrosOf gives the instant of t, cut to whole microseconds.
func MicrosOf(t time.Time) Micros { return Micros(t.UnixMicro()) }

// Time gives m as a time in UTC.
func (m Micros) Time() time.Time { return time.UnixMicro(int64(m)).UTC() }

// Sub gives the time from o to m, the longest there is (292 years) where it is longer.
func (m Micros) Sub(o Micros) time.Duration {
	const most = Micros(math.MaxInt64 / int64(time.Microsecond))
	switch d := m - o; {
	case m > o && (d < 0 || d > most):
		return math.MaxInt64
	case m < o && (d > 0 || d < -most):
		return math.MinInt64
	default:
		return time.Duration(d) * time.Microsecond
	}
}

// Add gives the instant d after m.
func (m Micros) Add(d time.Duration) Micros { return m + Micros(d/time.Microsecond) }

// The Arrow types that the project's own schemas are made of.
var (
	// KeyType is a dictionary-encoded string: what homes, devices, metrics, units and other names that
	// repeat within a batch are stored as.
	KeyType = &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int32, ValueType: arrow.BinaryTypes.String}
	// InstantType is a column of [Micros], UTC.
	InstantType = &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}
	// AttributesType is what a device says beside its value: free string pairs.
	AttributesType = arrow.MapOf(arrow.BinaryTypes.String, arrow.BinaryTypes.String)
)

// Names of the columns of [EventSchema]. Stages find columns by name, never by place.
const (
	ColTime       = "time"       // when it happened, by the device
	ColReceived   = "received"   // when the gateway took it, by the gateway
	ColHome       = "home"       // the home (tenant) it belongs to; also the partitioning key
	ColDevice     = "device"     // unique within the home
	ColMetric     = "metric"     // temperature, humidity, motion, …
	ColValue      = "value"      // the reading; null when the state is a text
	ColText       = "text"       // a state that is no number ("open"); null for readings
	ColUnit       = "unit"       // as the device said it; canonical after normalize
	ColSeq        = "seq"        // the device's own sequence, per device and metric; null when it keeps none
	ColAttributes = "attributes" // free string pairs
)

// EventSchema is one reading a row, as the gateway makes it. Streams further down may add columns; they
// keep these names and types.
var EventSchema = arrow.NewSchema([]arrow.Field{
	{Name: ColTime, Type: InstantType},
	{Name: ColReceived, Type: InstantType},
	{Name: ColHome, Type: KeyType},
	{Name: ColDevice, Type: KeyType},
	{Name: ColMetric, Type: KeyType},
	{Name: ColValue, Type: arrow.PrimitiveTypes.Float64, Nullable: true},
	{Name: ColText, Type: arrow.BinaryTypes.String, Nullable: true},
	{Name: ColUnit, Type: KeyType, Nullable: true},
	{Name: ColSeq, Type: arrow.PrimitiveTypes.Int64, Nullable: true},
	{Name: ColAttributes, Type: AttributesType, Nullable: true},
}, nil)

// Event is one row of [EventSchema].
type Event struct {
	Time, Received       Micros
	Home, Device, Metric string
	Value                float64 // meaningful when HasValue
	HasValue             bool
	Text                 string // meaningful when HasText
	HasText              bool
	Unit                 string // "" is null
	Seq                  int64  // meaningful when HasSeq
	HasSeq               bool
	Attributes           []Attribute // nil is null; no name twice
}

// Attribute is one thing that a device says beside its value.
type Attribute struct{ Name, Value string }

// PartitionOf says which of n partitions holds a home's rows. Every stream uses it, so a home's rows meet
// each other at every stage. FNV-1a (Fowler, Noll, Vo), 64 bit, with the upper half folded in: its low bits
// alone mix too little for small n.
func PartitionOf(home string, n int) int32 {
	h := uint64(14695981039346656037)
	for i := 0; i < len(home); i++ {
		h = (h ^ uint64(home[i])) * 1099511628211
	}
	h ^= h >> 32
	return int32(h % uint64(n))
}
