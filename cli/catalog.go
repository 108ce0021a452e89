package cli

import (
	"hearthline/flow"
	"hearthline/ingest"
	"hearthline/pipeline"
	"hearthline/sinks/clickhouse"
	"hearthline/sinks/parquet"
	"hearthline/sinks/webhook"
	"hearthline/stages"
)

// newCatalog is everything a pipeline.yaml can name.
func newCatalog() pipeline.Catalog {
	return pipeline.Catalog{
		Gateway: func() any { return ingest.New() },
		Stages:  stages.Catalog(),
		Sinks: map[string]func() flow.Sink{
			"clickhouse": func() flow.Sink { return clickhouse.New() },
			"parquet":    func() flow.Sink { return parquet.New() },
			"webhook":    func() flow.Sink { return webhook.New() },
		},
	}
}
