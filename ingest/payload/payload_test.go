package payload

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/ingest/names"
	"hearthline/ingest/payload/payloadtest"
	"hearthline/ingest/reason"
)

var testNow = payloadtest.Now

func testScope() *Scope { return &Scope{Home: "h1", Now: testNow, RowsMax: 1000} }

// TestRows holds single JSON rows, as HTTP takes them, to what becomes of them.
func TestRows(t *testing.T) {
	long := strings.Repeat("x", 129)
	many := `{"a0":1`
	for i := 1; i < 40; i++ {
		many += fmt.Sprintf(`,"a%d":1`, i)
	}
	for _, c := range []struct{ json, want string }{
		{`{"device":"d","metric":"m","value":1}`, "ok"},
		{`{"device":"d","metric":"m","text":"open"}`, "ok"},
		{`{"device":"d","metric":"m","text":""}`, "ok"},
		{`{"device":"d","metric":"m","value":1,"text":null,"unit":null,"seq":null,"time":null,"attributes":null}`, "ok"},
		{`{"home":"h1","device":"d","metric":"m","value":-1.5e3,"unit":"°C","seq":-9223372036854775808,"time":"2026-01-31T12:00:00+01:00","attributes":{"a":"b","n":1.50,"t":true}}`, "ok"},
		{`{"device":"küche 🏠","metric":"m","value":1}`, "ok"},
		{`{"device":"d","metric":"m","value":1,"time":1769860800000}`, "ok"},
		{`{"device":"d","metric":"m","value":1,"time":1769860800000.5}`, "ok"},
		{`{"metric":"m","value":1}`, "missing"},
		{`{"device":"d","value":1}`, "missing"},
		{`{"device":"","metric":"m","value":1}`, "missing"},
		{`{}`, "missing"},
		{`{"device":"d","metric":"m"}`, "value"},
		{`{"device":"d","metric":"m","value":1,"text":"x"}`, "value"},
		{`{"device":"d","metric":"m","value":null}`, "value"},
		{`{"device":"d","metric":"m","value":NaN}`, "not_finite"},
		{`{"device":"d","metric":"m","value":nan}`, "not_finite"},
		{`{"device":"d","metric":"m","value":-Infinity}`, "not_finite"},
		{`{"device":"d","metric":"m","value":1e999}`, "not_finite"},
		{`{"device":"d","metric":"m","value":"21.5"}`, "field"},
		{`{"device":"d","metric":"m","value":true}`, "field"},
		{`{"device":5,"metric":"m","value":1}`, "field"},
		{`{"device":"d","metric":"m","value":1,"vaule":2}`, "field"},
		{`{"device":"d","metric":"m","value":1,"value":2}`, "field"},
		{`{"device":"d","metric":"m","value":1,"seq":1.5}`, "field"},
		{`{"device":"d","metric":"m","value":1,"seq":9223372036854775808}`, "field"},
		{`{"device":"d","metric":"m","value":1,"seq":"1"}`, "field"},
		{`{"device":"d","metric":"m","value":1,"attributes":[]}`, "field"},
		{`{"device":"d","metric":"m","value":1,"attributes":{"a":{}}}`, "field"},
		{`{"device":"a/b","metric":"m","value":1}`, "name"},
		{`{"device":"a+","metric":"m","value":1}`, "name"},
		{`{"device":"a\u0000","metric":"m","value":1}`, "name"},
		{`{"device":"d","metric":"m\n","value":1}`, "name"},
		{`{"device":"d","metric":"m\u0085","value":1}`, "name"},
		{`{"device":"d","metric":"m","value":1,"unit":"\u0007"}`, "name"},
		{`{"device":"d","metric":"m","text":"a\u0001"}`, "name"},
		{`{"device":"` + long + `","metric":"m","value":1}`, "too_long"},
		{`{"device":"d","metric":"m","value":1,"unit":"` + long + `"}`, "too_long"},
		{`{"device":"d","metric":"m","text":"` + strings.Repeat("x", 4097) + `"}`, "too_long"},
		{`{"device":"d","metric":"m","value":1,"attributes":` + many + `}}`, "too_long"},
		{`{"device":"d","metric":"m","value":1,"attributes":{"a":"` + strings.Repeat("x", 1025) + `"}}`, "too_long"},
		{`{"device":"d","metric":"m","value":1,"time":"1970-01-01T00:00:00Z"}`, "time"},
		{`{"device":"d","metric":"m","value":1,"time":"2090-01-01T00:00:00Z"}`, "time"},
		{`{"device":"d","metric":"m","value":1,"time":"2026-02-01T12:00:01Z"}`, "time"},
		{`{"device":"d","metric":"m","value":1,"time":1769860800}`, "time"},
		{`{"device":"d","metric":"m","value":1,"time":1e300}`, "time"},
		{`{"device":"d","metric":"m","value":1,"time":"yesterday"}`, "time"},
		{`{"device":"d","metric":"m","value":1,"time":true}`, "field"},
		{`{"home":"h2","device":"d","metric":"m","value":1}`, "home"},
		{`5`, "field"},
		{`{"device":"d","metric":"m","value":1`, "malformed"},
		{`{"device":"d","metric":"m","value":1}}`, "malformed"},
		{`{"device":"d","metric":"m","value":01}`, "malformed"},
		{`{"device":"d","metric":"m","value":1,}`, "malformed"},
		{`{"device":"d","metric":"m","text":"` + "\xff" + `"}`, "malformed"},
		{`{"device":"d","metric":"m","text":"\ud800"}`, "malformed"},
		{`{"device":"d","metric":"m","value":1,"x":` + strings.Repeat("[", 100) + `}`, "malformed"},
	} {
		var d Decoder
		for _, f := range []Format{FormatJSON, FormatLines} {
			rows, err := d.Decode(f, []byte(c.json), testScope())
			got := "ok"
			if err != nil {
				got = Malformed(err).Reason.String()
			} else if rows[0].Refused != nil {
				got = rows[0].Refused.Reason.String()
			}
			if got != c.want {
				t.Errorf("%.100s: %s; want %s", c.json, got, c.want)
			}
		}
	}
}

func TestGoodRowIsWhole(t *testing.T) {
	var d Decoder
	rows, err := d.Decode(FormatJSON, []byte(` [ {"attributes":{"a":"\u00fc","n":1.50},"time":"2026-01-31T12:00:00.000001+01:00","seq":7,"unit":"Cel","value":-1.5e-3,"metric":"te\u006dp","device":"d"} ] `), testScope())
	if err != nil {
		t.Fatal(err)
	}
	r := rows[0]
	want := flow.MicrosOf(time.Date(2026, 1, 31, 11, 0, 0, 1000, time.UTC))
	if r.Refused != nil || r.Home != "h1" || r.Device != "d" || r.Metric != "temp" || r.Value != -0.0015 || !r.HasValue || r.HasText || r.Unit != "Cel" || r.Seq != 7 || !r.HasSeq || r.Time != want || r.Timing != timeAbsolute || !slices.Equal(r.Attributes, []flow.Attribute{{Name: "a", Value: "ü"}, {Name: "n", Value: "1.50"}}) {
		t.Errorf("%+v", r)
	}
}

func TestLinesStandAlone(t *testing.T) {
	var d Decoder
	rows, err := d.Decode(FormatLines, []byte("{\"device\":\"a\",\"metric\":\"m\",\"value\":1}\r\n\n{broken\n{\"device\":\"b\",\"metric\":\"m\",\"value\":2}"), testScope())
	if err != nil || len(rows) != 3 || rows[0].Refused != nil || rows[1].Refused == nil || rows[2].Refused != nil || rows[2].Device != "b" {
		t.Errorf("%+v, %v", rows, err)
	}
}

func TestTopicDevice(t *testing.T) {
	var d Decoder
	s := testScope()
	s.Device = "lamp"
	rows, err := d.Decode(FormatJSON, []byte(`[{"metric":"m","value":1},{"device":"lamp","metric":"m","value":1},{"device":"oven","metric":"m","value":1}]`), s)
	if err != nil || rows[0].Device != "lamp" || rows[1].Refused != nil || rows[2].Refused == nil || rows[2].Refused.Reason != reason.Device {
		t.Errorf("%+v %v", rows, err)
	}
	s.RowsMax = 2
	if _, err := d.Decode(FormatJSON, []byte(`[{},{},{}]`), s); Malformed(err).Reason != reason.Payload {
		t.Error(err)
	}
}

// TestSenML has the examples of RFC 8428, sections 5.1.1 to 5.1.4, and what may not be.
func TestSenML(t *testing.T) {
	at := func(seconds float64) flow.Micros { return flow.Micros(math.Round(seconds * 1e6)) }
	type want struct {
		device, metric, unit, text string
		value                      float64
		time                       flow.Micros
		timing                     timing
		refused                    string
	}
	for _, c := range []struct {
		name, json string
		want       []want
		err        string
	}{
		{"single", `[{"n":"urn:dev:ow:10e2073a01080063","u":"Cel","v":23.1}]`, []want{{device: "urn:dev:ow", metric: "10e2073a01080063", unit: "Cel", value: 23.1}}, ""},
		{"several", `[{"bn":"urn:dev:ow:10e2073a01080063:","n":"voltage","u":"V","v":120.1},{"n":"current","u":"A","v":1.2}]`,
			[]want{{device: "urn:dev:ow:10e2073a01080063", metric: "voltage", unit: "V", value: 120.1}, {device: "urn:dev:ow:10e2073a01080063", metric: "current", unit: "A", value: 1.2}}, ""},
		{"relative times", `[{"bn":"lamp/","bt":1.276020076001e+09,"bu":"A","bver":5,"n":"voltage","u":"V","v":120.1},{"n":"current","t":-5,"v":1.2},{"n":"current","v":1.7}]`,
			[]want{{"lamp", "voltage", "V", "", 120.1, at(1276020076.001), timeAbsolute, ""}, {"lamp", "current", "A", "", 1.2, at(1276020071.001), timeAbsolute, ""}, {"lamp", "current", "A", "", 1.7, at(1276020076.001), timeAbsolute, ""}}, ""},
		{"relative to now", `[{"n":"lamp/power","v":1,"t":-5}]`, []want{{"lamp", "power", "", "", 1, -5_000_000, TimeRelative, ""}}, ""},
		{"texts", `[{"bn":"door/","n":"open","vb":true},{"n":"label","vs":"front"}]`, []want{{device: "door", metric: "open", text: "true"}, {device: "door", metric: "label", text: "front"}}, ""},
		{"base value", `[{"bn":"d/","bv":20,"n":"m","v":1.5},{"n":"m","v":-1}]`, []want{{device: "d", metric: "m", value: 21.5}, {device: "d", metric: "m", value: 19}}, ""},
		{"base alone", `[{"bn":"d/"},{"n":"m","v":1}]`, []want{{device: "d", metric: "m", value: 1}}, ""},
		{"sum and data", `[{"n":"d/m","s":5},{"n":"d/m","vd":"aGk"},{"n":"d/m","v":1}]`, []want{{refused: "field"}, {refused: "field"}, {device: "d", metric: "m", value: 1}}, ""},
		{"wrong type", `[{"n":"d/m","v":"1"},{"n":5,"v":1}]`, []want{{refused: "field"}, {refused: "field"}}, ""},
		{"not finite", `[{"n":"d/m","v":NaN}]`, []want{{refused: "not_finite"}}, ""},
		{"no value", `[{"n":"d/m"}]`, []want{{refused: "value"}}, ""},
		{"no device", `[{"n":"m","v":1}]`, []want{{refused: "missing"}}, ""},
		{"too old", `[{"n":"d/m","v":1,"t":300000000}]`, []want{{refused: "time"}}, ""},
		{"unknown field", `[{"n":"d/m","v":1,"x":[1]}]`, []want{{device: "d", metric: "m", value: 1}}, ""},
		{"must be understood", `[{"n":"d/m","v":1,"x_":1}]`, nil, "malformed"},
		{"version", `[{"bver":11,"n":"d/m","v":1}]`, nil, "malformed"},
		{"no pack", `{"n":"d/m","v":1}`, nil, "malformed"},
		{"empty pack", `[]`, nil, "malformed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var d Decoder
			rows, err := d.Decode(FormatSenML, []byte(c.json), testScope())
			if c.err != "" {
				if err == nil || Malformed(err).Reason.String() != c.err {
					t.Errorf("%v; want %s", err, c.err)
				}
				return
			}
			if err != nil || len(rows) != len(c.want) {
				t.Fatalf("%d rows, %v", len(rows), err)
			}
			for i, w := range c.want {
				r := rows[i]
				if w.refused != "" {
					if r.Refused == nil || r.Refused.Reason.String() != w.refused {
						t.Errorf("row %d: %v; want %s", i, r.Refused, w.refused)
					}
					continue
				}
				if r.Refused != nil || r.Device != w.device || r.Metric != w.metric || r.Unit != w.unit || r.Text != w.text || r.HasText != (w.text != "") || math.Abs(r.Value-w.value) > 1e-9 || r.Time != w.time || r.Timing != w.timing {
					t.Errorf("row %d: %+v (%v); want %+v", i, r, r.Refused, w)
				}
			}
		})
	}
}

func TestArrow(t *testing.T) {
	for name, payload := range map[string][]byte{"plain": payloadtest.Arrow(t), "lz4": payloadtest.Arrow(t, ipc.WithLZ4()), "zstd": payloadtest.Arrow(t, ipc.WithZstd())} {
		t.Run(name, func(t *testing.T) {
			var d Decoder
			rows, err := d.Decode(FormatArrow, payload, testScope())
			if err != nil || len(rows) != 3 {
				t.Fatal(len(rows), err)
			}
			r := rows[2]
			if r.Refused != nil || r.Device != "d2" || r.Metric != "power" || r.Value != 2 || r.Unit != "W" || r.Seq != 2 || r.Time != testNow.Add(-2*time.Minute) || !slices.Equal(r.Attributes, []flow.Attribute{{Name: "a", Value: "b"}}) {
				t.Errorf("%+v %v", r, r.Refused)
			}
			for cut := range payload { // no prefix may do harm
				d.Decode(FormatArrow, payload[:cut], testScope())
			}
		})
	}
	t.Run("a claim of 2 GB", func(t *testing.T) {
		var d Decoder
		_, err := d.Decode(FormatArrow, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0}, testScope())
		if err == nil || Malformed(err).Reason != reason.Malformed {
			t.Error(err)
		}
	})
	t.Run("unknown column", func(t *testing.T) {
		b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{{Name: "metrik", Type: arrow.BinaryTypes.String}}, nil))
		defer b.Release()
		rec := b.NewRecord()
		defer rec.Release()
		var buf bytes.Buffer
		w := ipc.NewWriter(&buf, ipc.WithSchema(rec.Schema()))
		w.Write(rec)
		w.Close()
		var d Decoder
		if _, err := d.Decode(FormatArrow, buf.Bytes(), testScope()); err == nil || Malformed(err).Reason != reason.Field {
			t.Error(err)
		}
	})
}

// oracleRow is what encoding/json makes of a row.
type oracleRow struct {
	Device *string  `json:"device"`
	Metric *string  `json:"metric"`
	Value  *float64 `json:"value"`
	Text   *string  `json:"text"`
}

// FuzzReadings holds the JSON reader to encoding/json: what it takes must be valid JSON with the same values, and what
// encoding/json calls invalid must be refused, except for numbers that are not finite, which get their own reason.
func FuzzReadings(f *testing.F) {
	for _, s := range []string{`{"device":"d","metric":"m","value":1}`, `[{"device":"\u00fc\ud83c\udfe0","metric":"m","text":"a\"b","attributes":{"x":1}}]`, `[{"value":NaN}]`, `{"x":[1,{"y":null}],"time":1e3}`, `[]`, `{"device":"\ud800"}`, "{\"device\":\"\xff\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		var d Decoder
		rows, err := d.Decode(FormatJSON, payload, testScope())
		if err != nil {
			return
		}
		for i := range rows {
			if r := &rows[i]; r.Refused == nil && (names.Bad(r.Device) != "" || names.Bad(r.Metric) != "" || r.HasValue == r.HasText || math.IsNaN(r.Value) || math.IsInf(r.Value, 0)) {
				t.Fatalf("a row that should be refused: %+v", r)
			}
		}
		if !json.Valid(payload) {
			for i := range rows {
				if r := rows[i].Refused; r != nil && (r.Reason == reason.NotFinite || r.Reason == reason.Time || r.Reason == reason.Field) {
					return // NaN and its likes may stand where they are refused
				}
			}
			t.Fatalf("taken, and no JSON: %q", payload)
		}
		var want []oracleRow
		if json.Unmarshal(payload, &want) != nil {
			var one oracleRow
			if json.Unmarshal(payload, &one) != nil {
				return // a type that we refuse, or take as something else
			}
			want = []oracleRow{one}
		}
		if len(want) != len(rows) {
			t.Fatalf("%d rows; want %d: %q", len(rows), len(want), payload)
		}
		for i := range rows {
			r, w := rows[i], want[i]
			if r.Refused != nil {
				continue
			}
			if r.Device != *w.Device || r.Metric != *w.Metric || r.HasValue && r.Value != *w.Value || r.HasText && r.Text != *w.Text {
				t.Fatalf("%+v; want %+v: %q", r, w, payload)
			}
		}
	})
}

// FuzzPayloads looks for panics and broken limits in all formats.
func FuzzPayloads(f *testing.F) {
	f.Add(byte(FormatSenML), []byte(`[{"bn":"d/","bt":1e9,"n":"m","v":1,"t":-1}]`))
	f.Add(byte(FormatLines), []byte("{}\n{"))
	f.Add(byte(FormatArrow), payloadtest.Arrow(f))
	f.Add(byte(FormatArrow), payloadtest.Arrow(f, ipc.WithZstd()))
	f.Fuzz(func(t *testing.T, kind byte, payload []byte) {
		var d Decoder
		s := testScope()
		rows, err := d.Decode(Format(kind%4), payload, s)
		if err != nil {
			return
		}
		b := flow.NewEventBuilder()
		for i := range rows {
			if r := &rows[i]; r.Refused == nil {
				if r.Home != "h1" || r.Timing == timeAbsolute && (r.Time < timeMin || r.Time > s.Now.Add(FutureMax)) {
					t.Fatalf("%+v", r)
				}
				b.Append(&r.Event)
			}
		}
	})
}

func TestShortNumbersAreStrconvs(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	literals := []string{"0", "-0", "0.1", "-0.0", "999999999999999", "9999999999999999", "0.30000000000000004", "123456789.012345", "1e3", "0.000000000000001"}
	for range 20_000 {
		literals = append(literals, strconv.FormatFloat(rng.NormFloat64()*math.Pow10(rng.IntN(12)), 'f', rng.IntN(12), 64))
	}
	for _, lit := range literals {
		want, err := strconv.ParseFloat(lit, 64)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := short(lit); ok && math.Float64bits(got) != math.Float64bits(want) {
			t.Errorf("%s is %v; strconv says %v", lit, got, want)
		} else if digits := strings.Trim(lit, "-."); !ok && len(digits) <= 15 && !strings.ContainsAny(lit, "e") {
			t.Errorf("%s was not taken", lit)
		}
	}
}

func TestTextsEndWhereverTheyEnd(t *testing.T) {
	for length := range 40 {
		for at := range length {
			for _, c := range []string{"ü", `\n`, `\"`, "\x01", "\x7f", "~", " "} {
				text := strings.Repeat("a", at) + c + strings.Repeat("b", length-at)
				var r jsonReader
				r.reset([]byte(`"` + text + `","next"`))
				got, err := r.text()
				var want string
				if wrong := json.Unmarshal([]byte(`"`+text+`"`), &want); got != want || (err == nil) != (wrong == nil) {
					t.Errorf("%q: got %q, %v; want %q, %v", text, got, err, want, wrong)
				}
			}
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	one := `{"device":"thermostat-1","metric":"temperature","value":21.53,"unit":"Cel","time":"2026-01-31T11:59:58.123Z","seq":123456}`
	many := "[" + strings.Repeat(one+",", 99) + one + "]"
	senml := `[{"bn":"thermostat-1/","bt":1769860700,"bu":"Cel","n":"temperature","v":21.53}` + strings.Repeat(`,{"n":"temperature","t":1,"v":21.53}`, 99) + `]`
	for _, c := range []struct {
		name    string
		f       Format
		payload string
		rows    int
	}{{"JSON one row", FormatJSON, one, 1}, {"JSON with attributes", FormatJSON, `{"device":"thermostat-1","metric":"temperature","value":21.531,"unit":"Cel","seq":531,"time":1769860798123,"attributes":{"room":"living room","firmware":"1.22.3"}}`, 1}, {"JSON 100 rows", FormatJSON, many, 100}, {"SenML 100 rows", FormatSenML, senml, 100}} {
		b.Run(c.name, func(b *testing.B) {
			var d Decoder
			s, payload := testScope(), []byte(c.payload)
			b.ReportAllocs()
			for b.Loop() {
				if rows, err := d.Decode(c.f, payload, s); err != nil || rows[0].Refused != nil {
					b.Fatal(err, rows)
				}
			}
			b.ReportMetric(float64(b.N*c.rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
	b.Run("encoding_json 100 rows", func(b *testing.B) {
		for b.Loop() {
			var rows []oracleRow
			if err := json.Unmarshal([]byte(many), &rows); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N*100)/b.Elapsed().Seconds(), "rows/s")
	})
}
