package pipeline

import (
	"cmp"
	"fmt"
	"reflect"
	"time"

	"go.yaml.in/yaml/v3"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/flow/window"
	"hearthline/streams"
)

// Spec is a pipeline.yaml, read strictly: what joins what, and with which settings. Names are checked, streams
// resolved, settings not yet decoded: that is the business of the catalogue's structs (see [Catalog]).
type Spec struct {
	File       string // as it was named when read; part of every finding
	Source     []byte // the file as read, nothing expanded: what deploy/ ships
	Env        []EnvUse
	Lock       []byte // what stages that run in processes of their own make, for roles that have no Python; deploy/ ships it
	Name       string // of the pipeline; the prefix of its consumer groups
	Partitions int    // of every stream; a home's rows stay in one
	Kafka      Kafka
	Gateway    Gateway
	Sources    []Source   // in the order of the file
	Stages     []Stage    // in the order of the file
	Together   [][]string // names of stages that run in one task, with no Kafka between them
	Sinks      []Sink     // in the order of the file
	Checkpoint time.Duration
	Durability string // DurabilityProcess or DurabilityPower
	Console    Console
	Deploy     yaml.Node // read by deploy/ alone: images, replicas, limits by node

	CheckpointStore CheckpointStore

	// broken says that names or joints could not be read: what [NewPlan] says of missing streams and orphans
	// would only be echoes of that.
	broken     bool
	failed     bool         // something could not be read: there is no plan
	unset      map[Pos]bool // values that could not be expanded
	togetherAt []places     // of each group: "" the group, and each name
}

// What an acknowledgement outlives.
const (
	DurabilityProcess = "process" // kill -9 of every process
	DurabilityPower   = "power"   // and a power cut of the machine
)

// CheckpointStore says where tasks keep their state.
type CheckpointStore struct {
	To  string // a folder, or s3://bucket/prefix; "" is the data folder's
	S3  blobs.S3
	Pos Pos
}

// EnvUse is one ${NAME} or ${NAME:-default} in the values of a pipeline.yaml.
type EnvUse struct {
	Name       string
	Default    string
	HasDefault bool
	Path       string // of the value it stands in: sinks.clickhouse.settings.address
	Pos
}

// Kafka says where the streams are.
type Kafka struct {
	Brokers     []string // empty: the embedded broker, which only `up` starts
	Listen      string   // the embedded broker's address
	Compression string   // none, lz4 or zstd
	Retention   time.Duration
	Replication int // of streams that are made; 0: what the brokers do
	// How long a process may be silent before its partitions go to others.
	SessionTimeout time.Duration
	// How long a broker may take to answer before the request is sent again.
	RequestTimeout time.Duration
	TLS            *streams.TLS  // nil: connections are not encrypted; never used with the embedded broker
	SASL           *streams.SASL // nil: no login
	Pos            Pos

	at places
}

// Same says whether both name the same Kafka, reached in the same way, wherever they stand in their files.
func (k Kafka) Same(o Kafka) bool {
	k.Pos, k.at, o.Pos, o.at = Pos{}, nil, Pos{}, nil
	return reflect.DeepEqual(k, o)
}

// At is where a key of the section stands, or the section itself.
func (k *Kafka) At(key string) Pos { return k.at.of(key) }

// Gateway is the source of the pipeline.
type Gateway struct {
	To       string    // the stream it writes
	Commands string    // the stream it writes the steps of commands to; "" for none
	Settings yaml.Node // of ingest.Gateway
	Pos      Pos

	at places
}

// Console is the web page, its API and /metrics of `up`.
type Console struct {
	Listen    string
	TokenEnv  string // the variable that holds the token; the plan never does
	TokenFile string // or the file
	Insecure  bool   // no token, although others reach it
	Pos       Pos
}

// Same says whether both are seen at the same address by the same people, wherever they stand in their files.
func (c Console) Same(o Console) bool {
	c.Pos, o.Pos = Pos{}, Pos{}
	return c == o
}

// Stage is one use of a stage of the catalogue.
type Stage struct {
	Name     string
	Use      string              // name in the catalogue; Name unless the file says otherwise
	Was      string              // the name it had before it was renamed; see ID
	From     []string            // input streams
	Inputs   map[string]string   // input name → stream, of a stage that tells its inputs apart; else nil
	To       map[string]string   // output name → stream
	Keys     map[string][]string // stream → columns by whose values its rows are parted; of the others rows stay in their partition
	SQL      *Query              // what it is, where it is not in the catalogue
	ToAny    string              // the one stream of a stage with one output (`to: clean`), until Plan resolves it
	Settings yaml.Node
	Window   *window.Config // nil: it is given the batches as they come
	Workers  *flow.Workers  // how its processes are run; nil for the defaults
	Parallel int            // instances of a stateless stage that work at once in a task; 0 = one a core
	Trial    *Trial         // a second version beside it; nil: none
	ShadowOf string         // the stage whose second version this node is; "": it is none
	Pos      Pos

	at places
}

// Sink is one use of a sink of the catalogue.
type Sink struct {
	Name      string
	Use       string
	Was       string   // the name it had before it was renamed; see ID
	From      []string // input streams; may hold patterns such as "*.dead" until Plan resolves them
	Settings  yaml.Node
	FlushRows int64         // 0 = the sink's wish
	FlushWait time.Duration // 0 = the sink's wish
	Pos       Pos

	at places
}

// ID is the name that Kafka and the checkpoints know a stage by: the one it was first given. Its consumer group, the
// lineage of what it makes, its section of the state and its dead letters go by it, so that a stage that is renamed
// with `was:` goes on where it stands.
func (s *Stage) ID() string { return cmp.Or(s.Was, s.Name) }

// ID is the name that Kafka knows a sink by; see [Stage.ID].
func (s *Sink) ID() string { return cmp.Or(s.Was, s.Name) }

// Catalog is what pipeline.yaml can name. main.go fills it; every call of a constructor gives a fresh instance
// with its defaults.
type Catalog struct {
	Stages map[string]func() flow.Stage
	Sinks  map[string]func() flow.Sink
	// SQL gives what makes a stage of a query that a node has instead of a stage of the catalogue; streams are those it reads.
	SQL func(node, text string, streams []string) func() flow.Stage
	// Gateway is a fresh ingest.Gateway, as a struct whose exported fields are settings.
	Gateway func() any
}

// Pos is a place in pipeline.yaml; lines and columns count from 1.
type Pos struct{ Line, Column int }

// Level says how bad a finding is.
type Level uint8

const (
	LevelError   Level = iota // it does not run
	LevelWarning              // it runs, and somebody may be surprised
)

// Finding is one thing that is wrong with a pipeline.yaml.
type Finding struct {
	File string
	Pos
	Level   Level
	Path    string // stages.score.settings.treshold
	Message string // what is wrong
	Hint    string // what to do, "" when nobody knows
}

// String is one line: file:line:column: message; hint.
func (f Finding) String() string {
	s := fmt.Sprintf("%s:%d:%d: ", f.File, f.Line, f.Column)
	if f.Level == LevelWarning {
		s += "warning: "
	}
	s += f.Message
	if f.Hint != "" {
		s += "; " + f.Hint
	}
	return s
}

// Failed says whether one of the findings is an error.
func Failed(findings []Finding) bool {
	for _, f := range findings {
		if f.Level == LevelError {
			return true
		}
	}
	return false
}
