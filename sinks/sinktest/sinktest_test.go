package sinktest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// memorySink keeps ranges in a map, with one fault or none.
type memorySink struct {
	store *memoryStore
	fault string
}

type memoryStore struct {
	mu     sync.Mutex
	ranges map[string][]Row
	left   int // operations until it breaks; negative: whole
}

var errBroken = errors.New("broken")

func (m *memoryStore) put(key string, rows []Row, add bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left == 0 {
		return errBroken
	}
	if m.left > 0 {
		m.left--
	}
	if add {
		rows = append(slices.Clone(m.ranges[key]), rows...)
	}
	m.ranges[key] = rows
	return nil
}

func (m *memorySink) Write(ctx context.Context, r flow.Range, recs []arrow.Record) error {
	key := r.String()
	var rows []Row
	for i, rec := range recs {
		if err := ctx.Err(); err != nil {
			return err
		}
		rows = append(rows, Values(rec)...)
		if m.fault == "stores records one by one" || m.fault == "bad when broken" {
			if err := m.store.put(key+string(rune('a'+i)), Values(rec), false); err != nil {
				if m.fault == "bad when broken" {
					return flow.Badf("%v", err)
				}
				return err
			}
		}
	}
	switch m.fault {
	case "stores records one by one":
		return nil
	case "bad when broken":
		return nil
	case "forgets the incarnation":
		key = strings.Replace(key, r.StreamID, "", 1)
	case "forgets the partition":
		key = strings.Replace(key, r.StreamID+"-"+string(rune('0'+r.Partition)), "", 1)
	case "loses empty strings":
		for _, row := range rows {
			maps.DeleteFunc(row, func(_ string, v any) bool { return v == "" })
		}
	case "leaks":
		recs[0].Retain()
	}
	rows, bad := withTime(rows)
	switch m.fault {
	case "refuses good rows, too":
		rows = nil
	case "stores bad rows":
		bad = flow.BadRows{}
	case "names other rows":
		bad.AddAll(0, len(bad.Rows), "")
	}
	if err := m.store.put(key, rows, m.fault == "appends"); err != nil {
		return err
	}
	return bad.Err()
}

// withTime gives the rows that have a time, and names the others.
func withTime(rows []Row) (good []Row, bad flow.BadRows) {
	for i, row := range rows {
		if row[flow.ColTime] == nil {
			bad.Add(i, "no time")
		} else {
			good = append(good, row)
		}
	}
	return good, bad
}

func place(fault string) Place {
	store := &memoryStore{ranges: make(map[string][]Row), left: -1}
	return Place{
		Stream: "readings",
		Schema: flow.EventSchema,
		Sink:   func() flow.Sink { return &memorySink{store: store, fault: fault} },
		Rows: func(context.Context) ([]Row, error) {
			return slices.Concat(slices.Collect(maps.Values(store.ranges))...), nil
		},
		NeedsTime: true,
		Break: func(n int) {
			store.mu.Lock()
			defer store.mu.Unlock()
			store.left = n
		},
	}
}

func TestGoodSinkPasses(t *testing.T) { Run(t, func(*testing.T) Place { return place("") }) }

// TestFaultsAreFound: a suite that cannot fail proves nothing.
func TestFaultsAreFound(t *testing.T) {
	for fault, wantCheck := range map[string]string{
		"appends":                   "a range again by the same sink",
		"stores records one by one": "a range again, cut into other records",
		"bad when broken":           "broken off by its storage",
		"forgets the incarnation":   "two incarnations with the same offsets",
		"forgets the partition":     "partitions at once",
		"loses empty strings":       "each row once",
		"leaks":                     "each row once",
		"refuses good rows, too":    "rows that can never be stored",
		"stores bad rows":           "rows that can never be stored",
		"names other rows":          "rows that can never be stored",
	} {
		i := slices.IndexFunc(Checks, func(c Check) bool { return c.Name == wantCheck })
		mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
		if err := Checks[i].Check(t.Context(), place(fault), mem, 1); err == nil && mem.CurrentAlloc() == 0 {
			t.Errorf("a sink that %s passed %q", fault, wantCheck)
		}
	}
}
