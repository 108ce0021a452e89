package replay

import (
	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// within gives the rows of rec (borrowed) whose event time is in the bound; nil if none is. The caller releases it.
func (b *Bound) within(rec arrow.Record) arrow.Record {
	times, err := flow.Instants(rec, flow.ColTime)
	if err != nil || b.Since == 0 && b.Until == 0 {
		rec.Retain() // a stream without event times is bounded by where it is read, alone
		return rec
	}
	inside := func(i int) bool {
		t := flow.Micros(times[i])
		return (b.Since == 0 || t >= b.Since) && (b.Until == 0 || t < b.Until)
	}
	var parts []arrow.Record
	defer func() {
		for _, p := range parts {
			p.Release()
		}
	}()
	for from := 0; from < len(times); {
		to := from
		for to < len(times) && inside(to) {
			to++
		}
		if to > from {
			parts = append(parts, rec.NewSlice(int64(from), int64(to)))
		}
		for from = to; from < len(times) && !inside(from); {
			from++
		}
	}
	return joined(parts)
}

// joined is one record of the rows of parts (borrowed), which are of one record; nil if there are none.
func joined(parts []arrow.Record) arrow.Record {
	switch len(parts) {
	case 0:
		return nil
	case 1:
		parts[0].Retain()
		return parts[0]
	}
	rows := int64(0)
	for _, p := range parts {
		rows += p.NumRows()
	}
	columns := make([]arrow.Array, parts[0].NumCols())
	defer func() {
		for _, c := range columns {
			if c != nil {
				c.Release()
			}
		}
	}()
	for i := range columns {
		pieces := make([]arrow.Array, len(parts))
		for k, p := range parts {
			pieces[k] = p.Column(i)
		}
		c, err := array.Concatenate(pieces, memory.DefaultAllocator)
		if err != nil {
			panic("replay: slices of one column do not fit together: " + err.Error())
		}
		columns[i] = c
	}
	return array.NewRecord(parts[0].Schema(), columns, rows)
}
