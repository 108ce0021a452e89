package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/pipeline"
)

// The catalogue below has the names and the shapes of the real one, so that the real pipeline.yaml can be read in
// tests, and a few stages that do wrong.

func catalog() pipeline.Catalog {
	return pipeline.Catalog{
		Stages: map[string]func() flow.Stage{
			"normalize": func() flow.Stage { return &passing{output: "clean", needs: "value"} },
			"dedupe":    func() flow.Stage { return &remembering{passing{output: "unique", needs: "seq"}} },
			"enrich":    func() flow.Stage { return &enriching{Registry: "registry.csv"} },
			"features":  func() flow.Stage { return &windowing{Windows: []window{{60}}, Lateness: time.Minute} },
			"score":     func() flow.Stage { return &scoring{Threshold: 3, Levels: map[string]int{"low": 1}} },
			"alert":     func() flow.Stage { return &passing{output: "alerts", needs: "score"} },
			"merge":     func() flow.Stage { return &passing{output: "merged", needs: "time"} },
			"remote":    func() flow.Stage { return &remote{passing: passing{output: "far", needs: "time"}} },
			"panicking": func() flow.Stage { return failing(func() ([]flow.Output, error) { panic("index out of range [0]") }) },
			"silent":    func() flow.Stage { return failing(func() ([]flow.Output, error) { return nil, nil }) },
			"opened":    func() flow.Stage { return &opened{} },
			"inventive": func() flow.Stage { return inventing{} },
			"labeling":  func() flow.Stage { return &labeling{} },
			"picky":     func() flow.Stage { return &picky{passing{output: "picked"}} },
		},
		Sinks: map[string]func() flow.Sink{
			"clickhouse": func() flow.Sink { return &keeping{Address: "embedded", Batch: 1 << 20} },
			"parquet":    func() flow.Sink { return &keeping{Address: "data", Batch: 1 << 20} },
			"webhook":    func() flow.Sink { return calling{} },
		},
		SQL: func(_, text string, _ []string) func() flow.Stage {
			return func() flow.Stage { return &querying{text: text} }
		},
		Gateway: func() any { return &listening{MQTT: "127.0.0.1:8883"} },
	}
}

// remote runs in processes of its own.
type remote struct {
	passing
	use flow.Workers
}

func (r *remote) UseWorkers(w flow.Workers) { r.use = w }

type listening struct {
	MQTT string `yaml:"mqtt"`
	HTTP string `yaml:"http"`
	To   string `yaml:"to"`
}

func emptyOf(schema *arrow.Schema) arrow.Record {
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	return b.NewRecord()
}

// passing hands its input on, if a column is there.
type passing struct{ output, needs string }

func (p *passing) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	if p.needs != "" && !in.Schema().HasField(p.needs) {
		return nil, flow.Badf("no column %q", p.needs)
	}
	in.Retain()
	return []flow.Output{{To: p.output, Record: in}}, nil
}

type remembering struct{ passing }

func (*remembering) Snapshot(io.Writer) error { return nil }
func (*remembering) Restore(io.Reader) error  { return nil }

type picky struct{ passing }

func (*picky) Check(stream string, schema *arrow.Schema) error {
	if !schema.HasField("room") {
		return errors.New("a home without rooms")
	}
	return nil
}

type enriching struct {
	Registry string `yaml:"registry"`
}

func (e *enriching) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	fields := in.Schema().Fields()
	for _, name := range []string{"room", "kind", "model", "zone"} {
		fields = append(fields, arrow.Field{Name: name, Type: flow.KeyType, Nullable: true})
	}
	return []flow.Output{{To: "readings", Record: emptyOf(arrow.NewSchema(fields, nil))}}, nil
}

// window is a setting with a text form of its own.
type window struct{ seconds int }

func (w *window) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(strings.Split(string(text), "/")[0])
	if err != nil {
		return fmt.Errorf("%q is no window; write 5m, or 5m/1m", text)
	}
	w.seconds = int(d.Seconds())
	return nil
}

func (e *enriching) Check(stream string, schema *arrow.Schema) error {
	switch {
	case schema.HasField("room"):
		return fmt.Errorf("enrich: %s has a column room already", stream)
	case e.Registry == "missing.csv":
		return fmt.Errorf("enrich: read registry: %w", &fs.PathError{Op: "open", Path: e.Registry, Err: fs.ErrNotExist})
	case e.Registry == "broken.csv":
		return errors.New("enrich: read registry: line 3: no device")
	}
	return nil
}

type windowing struct {
	Windows  []window      `yaml:"windows"`
	Lateness time.Duration `yaml:"lateness"`
}

func (w *windowing) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	in.Retain()
	features := arrow.NewSchema([]arrow.Field{{Name: "time", Type: flow.InstantType}, {Name: "mean", Type: arrow.PrimitiveTypes.Float64}}, nil)
	return []flow.Output{{To: "features", Record: emptyOf(features)}, {To: "late", Record: in}}, nil
}

type scoring struct {
	Threshold float64        `yaml:"threshold"`
	Warmup    int            `yaml:"warmup"`
	Model     *model         `yaml:"model"`
	Levels    map[string]int `yaml:"levels"`
	Shadow    bool           `yaml:"shadow"`
	limits    `yaml:",inline"`
}

type limits struct {
	RowsMax  int32  `yaml:"rows_max"`
	BytesMax uint32 `yaml:"bytes_max"`
}

type model struct {
	Name    string `yaml:"name"`
	Version string `yaml:"version"`
}

func (s *scoring) Validate() error {
	var errs []error
	if s.Threshold <= 0 {
		errs = append(errs, errors.New("threshold is not above 0"))
	}
	if s.Warmup < 0 {
		errs = append(errs, errors.New("warmup: below 0"))
	}
	return errors.Join(errs...)
}

func (s *scoring) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	if !in.Schema().HasField("room") {
		return nil, flow.Badf("no column %q", "room")
	}
	scores := arrow.NewSchema([]arrow.Field{{Name: "time", Type: flow.InstantType}, {Name: "score", Type: arrow.PrimitiveTypes.Float64}}, nil)
	return []flow.Output{{To: "scores", Record: emptyOf(scores)}}, nil
}

// labeling tells its inputs apart: what it makes has the columns of its labels.
type labeling struct{ labels *arrow.Schema }

func (*labeling) InputNames() []string { return []string{"rows", "labels"} }

func (*labeling) Process(context.Context, arrow.Record) ([]flow.Output, error) { panic("not called") }

func (l *labeling) ProcessInput(_ context.Context, input string, in arrow.Record) ([]flow.Output, error) {
	if input == "rows" && !in.Schema().HasField("seq") {
		return nil, flow.Badf("no column seq")
	}
	if input == "labels" {
		l.labels = in.Schema()
	}
	if l.labels == nil {
		return nil, nil
	}
	return []flow.Output{{To: "labeled", Record: emptyOf(l.labels)}}, nil
}

type failing func() ([]flow.Output, error)

func (f failing) Process(context.Context, arrow.Record) ([]flow.Output, error) { return f() }

// opened knows its output only once it is open.
type opened struct {
	File   string `yaml:"file"`
	schema *arrow.Schema
}

func (o *opened) Open(context.Context) error {
	if o.File == "missing" {
		return errors.New("open missing: no such file")
	}
	o.schema = flow.EventSchema
	return nil
}

func (o *opened) Process(context.Context, arrow.Record) ([]flow.Output, error) {
	return []flow.Output{{To: "rows", Record: emptyOf(arrow.NewSchema(o.schema.Fields(), nil))}}, nil
}

// inventing makes rows of none.
type inventing struct{}

func (inventing) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	b := flow.NewEventBuilder()
	b.Append(&flow.Event{Home: "h"})
	rec, _ := b.Record()
	return []flow.Output{{To: "rows", Record: rec}}, nil
}

type keeping struct {
	Address  string            `yaml:"address"`
	Password string            `yaml:"password" secret:"true"`
	Secrets  []string          `yaml:"secrets" secret:"true"`
	Headers  map[string]string `yaml:"headers" secret:"names"`
	Batch    int               `yaml:"batch_bytes"`
}

func (*keeping) Write(context.Context, flow.Range, []arrow.Record) error { return nil }
func (*keeping) Check(stream string, schema *arrow.Schema) error {
	if !schema.HasField("time") {
		return errors.New("no column time to order by")
	}
	if stream == "scores" && !schema.HasField("score") {
		return errors.New(`the table scores has a column "score", which the stream has not`)
	}
	return nil
}

type calling struct{}

func (calling) Write(context.Context, flow.Range, []arrow.Record) error { return nil }

// querying is a stage of a query: what it does not understand is marked with a !, what it does not find with a ?.
type querying struct {
	text  string
	Above float64 `yaml:"above"`
}

type placedError struct {
	error
	place int
}

func (e placedError) Place() int    { return e.place }
func (e placedError) Unwrap() error { return e.error }

func (q *querying) Check(string, *arrow.Schema) error {
	if place := strings.Index(q.text, "!"); place >= 0 {
		return placedError{errors.New("a ! in column 1"), place}
	}
	return nil
}

func (q *querying) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	if place := strings.Index(q.text, "?"); place >= 0 {
		return nil, placedError{flow.Badf("a ?"), place}
	}
	if strings.Contains(q.text, "wide") {
		var fields []arrow.Field
		for i := range flow.ColumnsMax + 1 {
			fields = append(fields, arrow.Field{Name: fmt.Sprint("c", i), Type: arrow.PrimitiveTypes.Float64})
		}
		return []flow.Output{{To: "out", Record: emptyOf(arrow.NewSchema(fields, nil))}}, nil
	}
	in.Retain()
	return []flow.Output{{To: "out", Record: in}}, nil
}
