package pipeline

import (
	"fmt"
	"time"

	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// Spec is a pipeline.yaml, read strictly: what joins what, and with which settings. Names are checked, streams
// resolved, settings not yet decoded: that is the business of the catalogue's structs (see [Catalog]).
type Spec struct {
	File       string // as it was named when read; part of every finding
	Name       string // of the pipeline; the prefix of its consumer groups
	Partitions int    // of every stream; a home's rows stay in one
	Kafka      Kafka
	Gateway    Gateway
	Stages     []Stage    // in the order of the file
	Together   [][]string // names of stages that run in one task, with no Kafka between them
	Sinks      []Sink     // in the order of the file
	Checkpoint time.Duration
	Console    Console
	Deploy     yaml.Node // read by deploy/ alone: images, replicas, limits by node
}

// Kafka says where the streams are.
type Kafka struct {
	Brokers     []string // empty: the embedded broker, which only `up` starts
	Listen      string   // the embedded broker's address
	Compression string   // none, lz4 or zstd
	Retention   time.Duration
	Pos         Pos
}

// Gateway is the source of the pipeline.
type Gateway struct {
	To       string    // the stream it writes
	Settings yaml.Node // of ingest.Gateway
	Pos      Pos
}

// Console is the web page, its API and /metrics of `up`.
type Console struct {
	Listen string
	Pos    Pos
}

// Stage is one use of a stage of the catalogue.
type Stage struct {
	Name     string
	Use      string            // name in the catalogue; Name unless the file says otherwise
	From     []string          // input streams
	To       map[string]string // output name → stream
	ToAny    string            // the one stream of a stage with one output (`to: clean`), until Plan resolves it
	Settings yaml.Node
	Parallel int // instances of a stateless stage that work at once in a task; 0 = one a core
	Pos      Pos
}

// Sink is one use of a sink of the catalogue.
type Sink struct {
	Name      string
	Use       string
	From      []string // input streams; may hold patterns such as "*.dead" until Plan resolves them
	Settings  yaml.Node
	FlushRows int64         // 0 = the sink's wish
	FlushWait time.Duration // 0 = the sink's wish
	Pos       Pos
}

// Catalog is what pipeline.yaml can name. main.go fills it; every call of a constructor gives a fresh instance
// with its defaults.
type Catalog struct {
	Stages map[string]func() flow.Stage
	Sinks  map[string]func() flow.Sink
	// Gateway is a fresh ingest.Gateway, as a struct whose exported fields are settings.
	Gateway func() any
}

// Pos is a place in pipeline.yaml; lines and columns count from 1.
type Pos struct{ Line, Column int }

// Finding is one thing that is wrong with a pipeline.yaml.
type Finding struct {
	File string
	Pos
	Path    string // stages.score.settings.treshold
	Message string // what is wrong
	Hint    string // what to do, "" when nobody knows
}

func (f Finding) String() string {
	s := fmt.Sprintf("%s:%d:%d: %s", f.File, f.Line, f.Column, f.Message)
	if f.Hint != "" {
		s += "; " + f.Hint
	}
	return s
}
