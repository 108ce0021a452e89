package compare

import (
	"math"
	"slices"
	"strings"
	"time"

	"hearthline/pipeline"
)

// Report is how two versions of a stage differ so far. Pairs of numbers are the first version's and the second's.
type Report struct {
	Stage   string  `json:"stage"`
	Kind    string  `json:"kind"`
	First   string  `json:"first"`
	Second  string  `json:"second"`
	Percent float64 `json:"percent,omitempty"` // of a canary
	Seconds float64 `json:"seconds"`           // it has been compared for

	Outputs    []Output `json:"outputs"`
	Dead       [2]int64 `json:"dead"`       // rows set aside; a canary's all stand with the first
	Duplicates int64    `json:"duplicates"` // batches that were published again after a crash
	// Arrival is how many seconds after the first version's rows those of the second were read; below 0: before.
	Arrival *Numbers `json:"arrival,omitempty"`
}

// Output is one output of both.
type Output struct {
	Stream  string   `json:"stream"`
	Paired  int64    `json:"paired"`
	Equal   int64    `json:"equal"`   // of those, equal in all columns
	Only    [2]int64 `json:"only"`    // rows that only one version made
	Waiting int64    `json:"waiting"` // rows whose partners may come
	GaveUp  int64    `json:"gave_up"` // rows that could not be paired, since too many waited
	Edge    int64    `json:"edge"`    // rows whose partners came before this began
	Columns []Column `json:"columns"`
}

// Column is one column of both.
type Column struct {
	Name   string       `json:"name"`
	Kind   string       `json:"kind"` // number, text, other
	First  Summary      `json:"first"`
	Second Summary      `json:"second"`
	Paired int64        `json:"paired"`
	Equal  int64        `json:"equal"`
	Diff   *Numbers     `json:"diff,omitempty"` // of numbers: the second's less the first's
	Most   []Difference `json:"largest,omitempty"`
}

// Difference is a cell of two rows that belong together.
type Difference struct {
	Row    []string `json:"row"` // keys, column=value
	First  string   `json:"first"`
	Second string   `json:"second"`
	size   float64
}

// Report says how the versions differ so far. Final says that nothing more will come: what waits has no partner.
func (c *Comparison) Report(final bool) Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	if final {
		c.finish()
	}
	t := c.stage.Trial
	r := Report{Stage: c.stage.Name, Kind: t.Kind, First: named(c.stage.Use, c.stage.SQL), Second: named(t.Use, t.SQL), Percent: t.Percent, Seconds: time.Since(c.begun).Seconds(),
		Dead: c.deadRows, Duplicates: c.duplic}
	if c.Live && c.arrivals.n > 0 {
		r.Arrival = c.arrivals.report(kindNumber).Numbers
	}
	seen := map[*output]bool{}
	for _, out := range c.outputs {
		if seen[out] {
			continue
		}
		seen[out] = true
		o := Output{Stream: out.stream, Paired: out.paired, Equal: out.equal, Only: out.only, GaveUp: out.gaveUp, Edge: out.edge}
		for _, list := range out.waiting {
			o.Waiting += int64(len(list))
		}
		for _, col := range out.columns {
			one := Column{Name: col.name, Kind: col.kind, First: col.of[First].report(col.kind), Second: col.of[Second].report(col.kind),
				Paired: col.paired, Equal: col.equal, Most: sortedDifferences(col.largest)}
			if col.diff.n > 0 && col.equal < col.paired {
				one.Diff = col.diff.report(kindNumber).Numbers
			}
			o.Columns = append(o.Columns, one)
		}
		r.Outputs = append(r.Outputs, o)
	}
	slices.SortFunc(r.Outputs, func(a, b Output) int { return strings.Compare(a.Stream, b.Stream) })
	return r
}

func named(use string, query *pipeline.Query) string {
	if query != nil {
		return "sql"
	}
	return use
}

// finish settles what waits: before where both versions have come it has no partner; what is behind that stays.
func (c *Comparison) finish() {
	for at, list := range c.age {
		r := c.came[at]
		for len(list) > 0 && list[0].offset < min(r.last[0], r.last[1]) {
			c.drop(at, true)
			list = c.age[at]
		}
	}
}

// Worth is the share of rows that are equal, of all that could be compared: NaN when there are none.
func (o *Output) Worth() float64 {
	all := o.Paired + o.Only[0] + o.Only[1]
	if all == 0 {
		return math.NaN()
	}
	return float64(o.Equal) / float64(all)
}
