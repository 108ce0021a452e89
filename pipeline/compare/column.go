package compare

import (
	"hash/maphash"
	"math"
	"strconv"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/flow"
)

// Kinds of column.
const (
	kindNumber = "number"
	kindText   = "text"
	kindOther  = "other" // compared as written
)

// cells reads one column of a record.
type cells struct {
	kind   string
	null   func(row int) bool
	number func(row int) float64
	text   func(row int) string
}

func cellsOf(rec arrow.Record, i int) cells {
	col := rec.Column(i)
	c := cells{kind: kindNumber, null: col.IsNull}
	switch a := col.(type) {
	case *array.Float64:
		c.number = a.Value
	case *array.Float32:
		c.number = func(row int) float64 { return float64(a.Value(row)) }
	case *array.Int64:
		c.number = func(row int) float64 { return float64(a.Value(row)) }
	case *array.Int32:
		c.number = func(row int) float64 { return float64(a.Value(row)) }
	case *array.Uint32:
		c.number = func(row int) float64 { return float64(a.Value(row)) }
	case *array.Uint64:
		c.number = func(row int) float64 { return float64(a.Value(row)) }
	case *array.Boolean:
		c.number = func(row int) float64 {
			if a.Value(row) {
				return 1
			}
			return 0
		}
	default:
		if s, err := flow.StringsOf(rec, rec.ColumnName(i)); err == nil {
			c.kind, c.text = kindText, s.Value
			break
		}
		c.kind, c.text = kindOther, a.ValueStr
	}
	return c
}

// shown is a cell as people read it.
func (c *cells) shown(row int) string {
	switch {
	case c.null(row):
		return "null"
	case c.kind == kindNumber:
		return strconv.FormatFloat(c.number(row), 'g', 6, 64)
	}
	return c.text(row)
}

// equal compares two cells: numbers within a share of the larger of them.
func (c *cells) equal(row int, o *cells, other int, tolerance float64) bool {
	if c.null(row) || o.null(other) {
		return c.null(row) == o.null(other)
	}
	if c.kind != kindNumber || o.kind != kindNumber {
		return c.kind == o.kind && c.text(row) == o.text(other)
	}
	x, y := c.number(row), o.number(other)
	return x == y || math.IsNaN(x) && math.IsNaN(y) || math.Abs(x-y) <= tolerance*math.Max(math.Abs(x), math.Abs(y))
}

// summary is what is known of one version's values of a column.
type summary struct {
	rows, nulls int64
	mean, m2    float64 // Welford's
	min, max    float64
	n           int64
	quantiles   sketch
	texts       distinct
}

var seed = maphash.MakeSeed()

func (s *summary) add(c *cells, row int) {
	s.rows++
	switch {
	case c.null(row):
		s.nulls++
	case c.kind != kindNumber:
		s.texts.add(maphash.String(seed, c.text(row)))
	default:
		x := c.number(row)
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return
		}
		if s.n == 0 {
			s.min, s.max = x, x
		}
		s.n++
		s.min, s.max = min(s.min, x), max(s.max, x)
		d := x - s.mean
		s.mean += d / float64(s.n)
		s.m2 += d * (x - s.mean)
		s.quantiles.add(x)
	}
}

// Summary is one version's values of a column. Numbers have a mean, texts how many different ones there are.
type Summary struct {
	Rows     int64    `json:"rows"`
	Nulls    int64    `json:"nulls"`
	Distinct *int64   `json:"distinct,omitempty"`
	Numbers  *Numbers `json:"numbers,omitempty"`
}

// Numbers are the moments and quantiles (within 1 %) of a column; those that are NaN or infinite are left out.
type Numbers struct {
	Mean float64 `json:"mean"`
	Std  float64 `json:"std"` // of the sample
	Min  float64 `json:"min"`
	P10  float64 `json:"p10"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	Max  float64 `json:"max"`
}

// finite keeps what overflowed a number that JSON has.
func finite(x float64) float64 {
	if math.IsNaN(x) {
		return math.MaxFloat64
	}
	return max(-math.MaxFloat64, min(x, math.MaxFloat64))
}

func (s *summary) report(kind string) Summary {
	r := Summary{Rows: s.rows, Nulls: s.nulls}
	if kind != kindNumber {
		n := s.texts.estimate()
		r.Distinct = &n
		return r
	}
	if s.n > 0 {
		r.Numbers = &Numbers{Mean: s.mean, Min: s.min, Max: s.max}
		for q, to := range map[float64]*float64{0.1: &r.Numbers.P10, 0.5: &r.Numbers.P50, 0.9: &r.Numbers.P90, 0.99: &r.Numbers.P99} {
			*to = s.quantiles.quantile(q)
		}
		r.Numbers.Mean = finite(r.Numbers.Mean)
		if s.n > 1 {
			r.Numbers.Std = finite(math.Sqrt(s.m2 / float64(s.n-1)))
		}
	}
	return r
}
