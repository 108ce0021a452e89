package cases

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/compute/exec"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// summer is a right stage: it passes each value on as the sum of all so far, and refuses negative ones. wrong lets it do
// one thing wrong.
type summer struct {
	Start float64            `yaml:"start"`
	Deep  struct{ A, B int } `yaml:"deep"`
	wrong string
	sum   float64
	calls int
}

var sums = arrow.NewSchema([]arrow.Field{{Name: "device", Type: flow.KeyType}, {Name: "sum", Type: arrow.PrimitiveTypes.Float64}}, nil)

func (s *summer) Open(context.Context) error {
	if s.Start < 0 {
		return errors.New("start is below 0")
	}
	s.sum = s.Start
	return nil
}

func (s *summer) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	s.calls++
	mem := exec.GetAllocator(ctx)
	ev, err := flow.EventsOf(in)
	if err != nil {
		return nil, err
	}
	b := array.NewRecordBuilder(mem, sums)
	if s.wrong != "leaks" {
		defer b.Release()
	} else {
		b.Reserve(1)
	}
	if s.wrong == "counts batches" {
		s.sum++
	}
	if s.wrong == "panics" && in.NumRows() > 0 {
		panic("oops")
	}
	if s.wrong == "writes into its input" && in.NumRows() > 0 {
		ev.Value.Float64Values()[0] = 42
	}
	var bad flow.BadRows
	for i := range int(in.NumRows()) {
		v := ev.Value.Value(i)
		if s.wrong == "ignores offsets" {
			v = arrow.Float64Traits.CastFromBytes(ev.Value.Data().Buffers()[1].Bytes())[i]
		}
		if v < 0 {
			row := i
			if s.wrong == "miscounts bad rows" {
				row += 100
			}
			bad.Add(row, "below 0")
			continue
		}
		s.sum += v
		if err := b.Field(0).(*array.BinaryDictionaryBuilder).AppendString(ev.Device.Value(i)); err != nil {
			return nil, err
		}
		if s.wrong == "nulls" {
			b.Field(1).AppendNull()
		} else {
			b.Field(1).(*array.Float64Builder).Append(s.sum)
		}
	}
	out := b.NewRecord()
	if s.wrong == "keeps silent about zero rows" && in.NumRows() == 0 {
		out.Release()
		return nil, nil
	}
	if s.wrong == "another schema for zero rows" && in.NumRows() == 0 {
		out.Release()
		out = array.NewRecord(arrow.NewSchema(sums.Fields()[:1], nil), []arrow.Array{array.MakeArrayOfNull(mem, flow.KeyType, 0)}, 0)
	}
	return []flow.Output{{To: "sums", Record: out}}, bad.Err()
}

func (s *summer) Snapshot(w io.Writer) error {
	v := []float64{s.sum}
	switch s.wrong {
	case "snapshots differ":
		s.calls++
		v = append(v, float64(s.calls))
	case "forgets":
		v[0] = 0
	}
	return binary.Write(w, binary.LittleEndian, v)
}

func (s *summer) Restore(r io.Reader) error {
	if s.wrong == "snapshots differ" {
		return nil
	}
	return binary.Read(r, binary.LittleEndian, &s.sum)
}

func (s *summer) Advance(_ context.Context, w flow.Micros) ([]flow.Output, error) {
	if s.wrong == "counts watermarks" {
		s.sum++
	}
	return nil, nil
}

const rightCase = `
name: sums
settings: {start: 1}
each: {home: h, metric: m}
steps:
- in: [{time: 0s, device: a, value: 1}, {time: 1s, device: b, value: 2}, {time: 2s, device: a, value: -1}, {time: 3s, device: a, value: 3}]
  want: {sums: [{device: a, sum: 2}, {sum: 4}, {sum: 7}]}
  dead: [{row: 2, reason: below}]
- in: [{time: 10s, device: a, value: 5}, {time: 11s, device: a, value: 5}, {time: 12s, device: a, value: 5}]
  want: {sums: [{sum: 12}, {sum: 17}, {sum: 22}]}
- advance: 20s
- in: [{time: 30s, device: b, value: 0}]
  want: {sums: [{sum: 22}]}
`

func check(t *testing.T, text string, newStage func() flow.Stage) error {
	t.Helper()
	cases, err := parse("x.yaml", []byte(text))
	if err != nil {
		return err
	}
	for _, c := range cases {
		if err := c.check(t.Context(), newStage, 1); err != nil {
			return err
		}
	}
	return nil
}

func expect(t *testing.T, what string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", what, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: got the error %v; want one that holds %q", what, err, want)
	}
}

// Each thing that a stage can do wrong must be found, and a right stage must not be blamed.
func TestWrongStagesAreFound(t *testing.T) {
	for wrong, want := range map[string]string{
		"":                             "",
		"leaks":                        "bytes of Arrow memory were not given back",
		"counts batches":               "not what was wanted",
		"counts watermarks":            "not what was wanted",
		"panics":                       "panicked: oops",
		"writes into its input":        "changed its input",
		"ignores offsets":              "cut at random",
		"miscounts bad rows":           "it must be ascending and within",
		"nulls":                        "is not nullable",
		"keeps silent about zero rows": "zero rows told of the outputs []",
		"another schema for zero rows": "had the schema",
		"snapshots differ":             "two snapshots of the same state differ",
		"forgets":                      "restored after each step",
	} {
		err := check(t, rightCase, func() flow.Stage { return &summer{wrong: wrong} })
		expect(t, "a stage that "+wrong, err, want)
	}
}

// What only other cuts show must be found when the case itself is fulfilled.
func TestDependingOnBatchesIsFound(t *testing.T) {
	text := strings.ReplaceAll(rightCase[:strings.Index(rightCase, "- in: [{time: 10s")], "sum: 2}, {sum: 4}, {sum: 7}", "sum: 3}, {sum: 5}, {sum: 8}")
	err := check(t, text, func() flow.Stage { return &summer{wrong: "counts batches"} })
	expect(t, "a stage that counts batches", err, "with zero rows first")
}

func TestWrongExpectationsAreFound(t *testing.T) {
	for from, c := range map[string]struct{ to, want string }{
		"{sum: 4}":                            {"{sum: 4.001}", "sums: rows that came: 3, wanted: 3\n  row  line  column  got  want\n  1    7     sum     4    4.001\n"},
		"{sum: 4}, ":                          {"", "  1    -     (row)   {device: b, sum: 4}  not wanted\n"},
		"{sum: 22}]}\n- adv":                  {"{sum: 22}, {sum: 23}]}\n- adv", "  -    10    (row)   missing  {sum: 23}\n"},
		"{device: a, sum":                     {"{devise: a, sum", "devise  no such column; there are device, sum"},
		"want: {sums: [{device":               {"want: {summs: [{device", `there is no output "summs"; there are [sums]`},
		"row: 2":                              {"row: 1", "bad row: got 2"},
		"reason: below":                       {"reason: above", `got 2, "below 0"; want 2, "above"`},
		"  dead: [{row: 2, reason: below}]\n": {"", "row 2 is bad and should not be: below 0"},
		"{start: 1}":                          {"{strat: 1}", `line 3: unknown setting "strat"; known are start, deep`},
		"each: {home: h,":                     {"each: {", `line 6: column "home" must not be null`},
		"time: 0s":                            {"tiem: 0s", `line 6: the input has no column "tiem"`},
		"steps:":                              {"stepps:", `line 5: unknown key "stepps"; known are name`},
		"advance: 20s":                        {"advance: soon", `"soon" is neither a time`},
		"- advance: 20s":                      {"- advance: 20s\n  snapshot: x", "a step is one of in, advance, snapshot, restore; this is advance and snapshot"},
		"name: sums":                          {"exact: false", "a case needs a name"},
		"value: -1":                           {"value: one", "column \"value\""},
		"- advance: 20s\n":                    {"- restore: x\n", `no snapshot "x" was made before`},
	} {
		if !strings.Contains(rightCase, from) {
			if c.want != "" {
				t.Errorf("the case does not hold %q", from)
			}
			continue
		}
		err := check(t, strings.Replace(rightCase, from, c.to, 1), func() flow.Stage { return &summer{} })
		expect(t, from+" became "+c.to, err, c.want)
	}
}

func TestRefuses(t *testing.T) {
	made := func() flow.Stage { return &summer{} }
	expect(t, "refused", check(t, "name: x\nsettings: {start: -1}\nrefuses: below 0\n", made), "")
	expect(t, "taken", check(t, "name: x\nsettings: {start: 1}\nrefuses: below 0\n", made), "the settings were taken")
	expect(t, "another error", check(t, "name: x\nsettings: {start: -1}\nrefuses: above\n", made), "want one that holds")
	expect(t, "deep", check(t, "name: x\nsettings: {deep: {c: 1}}\nrefuses: 'line 2: unknown setting \"c\"; known are a, b'\n", made), "")
}

func TestEveryColumnTypeComesThrough(t *testing.T) {
	c, err := parse("x.yaml", []byte(`
name: x
input: [a key, b text null, c float64, d int64, e int32, f bool, g instant, h map null]
steps:
- in: [{a: k, b: null, c: .nan, d: 9223372036854775807, e: -1, f: true, g: 1h, h: {y: "2", x: "1"}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	defer mem.AssertSize(t, 0)
	rec, err := c[0].record(mem, "", c[0].steps[0].in)
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Release()
	want := "{a: k, c: NaN, d: 9223372036854775807, e: -1, f: true, g: 2024-01-01T01:00:00Z, h: map[x:1 y:2]}"
	if got := rowsOfRecord(rec)[0].String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(rightCase))
	f.Add([]byte("name: x\nsteps: [{in: [{a: *b}]}]"))
	f.Add([]byte("name: x\nrefuses: y\n---\nname: [z]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		_, _ = parse("x.yaml", text) // must not panic
	})
}
