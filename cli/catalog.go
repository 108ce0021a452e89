package cli

import (
	"fmt"
	"path/filepath"

	"hearthline/flow"
	"hearthline/ingest"
	"hearthline/pipeline"
	"hearthline/python"
	"hearthline/sinks/clickhouse"
	"hearthline/sinks/parquet"
	"hearthline/sinks/webhook"
	"hearthline/stages"
)

// catalogOf is everything that a pipeline.yaml can name, with the Python stages of the folder stages beside it.
func (o *options) catalogOf() (pipeline.Catalog, error) {
	cat := newCatalog()
	workers := python.New("")
	if o.log != nil {
		workers.Logger = o.log
	}
	folder := filepath.Join(filepath.Dir(o.pipeline), "stages")
	found, err := workers.Stages(folder)
	if err != nil {
		return cat, err
	}
	for name, stage := range found {
		if cat.Stages[name] != nil {
			return cat, fmt.Errorf("%s: there is a stage %s already; give the folder another name", filepath.Join(folder, name), name)
		}
		cat.Stages[name] = stage
	}
	return cat, nil
}

// newCatalog is everything a pipeline.yaml can name anywhere.
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
