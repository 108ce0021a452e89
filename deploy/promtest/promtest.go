// Package promtest asks Prometheus's own engine, on series in memory, for tests of alerts and dashboards.
package promtest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

// Step is between two samples of a series.
const Step = 15 * time.Second

// Language reads queries and series.
var Language = parser.NewParser(parser.Options{})

// Read reads series in Prometheus's notation for tests: `up{instance="a"} 0+1x120`. Time begins at 0.
func Read(texts ...string) ([]promql.Series, error) {
	var all []promql.Series
	for _, text := range texts {
		metric, values, err := Language.ParseSeriesDesc(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", text, err)
		}
		s := promql.Series{Metric: metric}
		for i, v := range values {
			s.Floats = append(s.Floats, promql.FPoint{T: int64(i) * Step.Milliseconds(), F: v.Value})
		}
		all = append(all, s)
	}
	return all, nil
}

// Ask gives the answer to a query at a time: a vector or a scalar.
func Ask(ctx context.Context, query string, at time.Time, series []promql.Series) (parser.Value, error) {
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e7, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, Parser: Language,
		NoStepSubqueryIntervalFn: func(int64) int64 { return time.Minute.Milliseconds() }})
	q, err := engine.NewInstantQuery(ctx, memory(series), nil, query, at)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", query, err)
	}
	defer q.Close()
	answer := q.Exec(ctx)
	if answer.Err != nil {
		return nil, fmt.Errorf("%s: %w", query, answer.Err)
	}
	if v, ok := answer.Value.(promql.Vector); ok {
		return slices.Clone(v), nil // it is the query's, which is closed
	}
	return answer.Value, nil
}

func memory(all []promql.Series) storage.Queryable {
	return storage.QueryableFunc(func(int64, int64) (storage.Querier, error) {
		return &storage.MockQuerier{SelectMockFunction: func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
			found := &set{at: -1}
			for _, s := range all {
				if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.Metric.Get(m.Name)) }) {
					found.all = append(found.all, s)
				}
			}
			return found
		}}, nil
	})
}

// set is a storage.SeriesSet.
type set struct {
	all []promql.Series
	at  int
}

func (s *set) Next() bool                        { s.at++; return s.at < len(s.all) }
func (s *set) At() storage.Series                { return promql.NewStorageSeries(s.all[s.at]) }
func (s *set) Err() error                        { return nil }
func (s *set) Warnings() annotations.Annotations { return nil }
