package pipeline_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"hearthline/pipeline"
)

type everything struct {
	Text     string            `yaml:"text"`
	Yes      bool              `yaml:"yes"`
	Small    int8              `yaml:"small"`
	Big      uint64            `yaml:"big"`
	Ratio    float64           `yaml:"ratio"`
	Wait     time.Duration     `yaml:"wait"`
	BytesMax int64             `yaml:"bytes_max"`
	List     []string          `yaml:"list"`
	Pair     [2]int            `yaml:"pair"`
	Labels   map[string]string `yaml:"labels"`
	Nested   inner             `yaml:"nested"`
	Pointer  *inner            `yaml:"pointer"`
	Free     any               `yaml:"free"`
	Line     lined             `yaml:"line"`
	Inline   `yaml:",inline"`
	Rest     map[string]int `yaml:",inline"`
	Untagged string
	Hidden   string `yaml:"-"`
}

type inner struct {
	Name  string `yaml:"name"`
	Count int    `yaml:"count"`
}

type Inline struct {
	Deep string `yaml:"deep"`
}

func (i inner) Validate() error {
	if i.Count < 0 {
		return errors.New("count: below zero")
	}
	return nil
}

// lined says on which line it is wrong, as types with UnmarshalYAML do.
type lined struct{ text string }

func (l *lined) UnmarshalYAML(n *yaml.Node) error {
	for i := 1; i < len(n.Content); i += 2 {
		if n.Content[i].Value == "wrong" {
			return fmt.Errorf("line %d: wrong it is", n.Content[i].Line)
		}
	}
	l.text = n.Value
	return nil
}

func decodeText(t *testing.T, text string, into any) []string {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range pipeline.Decode(&doc, into, "settings", "x") {
		got = append(got, fmt.Sprintf("%d:%d %s: %s", f.Line, f.Column, f.Path, f.Message))
	}
	return got
}

func TestDecodeSetsEverything(t *testing.T) {
	shared := &inner{Name: "default", Count: 1}
	labels := map[string]string{"kept": "a", "changed": "a"}
	got := everything{Pointer: shared, Labels: labels, List: []string{"a", "b"}, Hidden: "h", Untagged: "u"}
	findings := decodeText(t, `
text: 'true'
yes: true
small: -128
big: 18446744073709551615
ratio: 1
wait: 2d3h4m5s
bytes_max: 1.5KiB
list: [c]
pair: [1, 2]
labels: {changed: b, 1: one}
nested: {count: 1e3}
pointer: {count: 2}
free: [1, {a: b}]
line: text
deep: water
other: 5
`, &got)
	if findings != nil {
		t.Error(findings)
	}
	want := everything{
		Text: "true", Yes: true, Small: -128, Big: 1<<64 - 1, Ratio: 1, Wait: 51*time.Hour + 4*time.Minute + 5*time.Second, BytesMax: 1536,
		List: []string{"c"}, Pair: [2]int{1, 2}, Labels: map[string]string{"kept": "a", "changed": "b", "1": "one"},
		Nested: inner{Count: 1000}, Pointer: &inner{Name: "default", Count: 2}, Free: []any{1, map[string]any{"a": "b"}},
		Line: lined{"text"}, Inline: Inline{"water"}, Rest: map[string]int{"other": 5}, Untagged: "u", Hidden: "h",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if shared.Count != 1 || labels["changed"] != "a" {
		t.Errorf("defaults that instances share were changed: %+v, %v", shared, labels)
	}
}

func TestDecodeRefuses(t *testing.T) {
	cases := []struct{ text, want string }{
		{"small: 128", "1:8 settings.small: small is the number 128; want a number of 8 bits"},
		{"big: -1", "1:6 settings.big: big is the number -1; want a whole number from 0 to 18446744073709551615"},
		{"ratio: .nan", "1:8 settings.ratio: ratio is the number .nan; want a number"},
		{"wait: 0", "1:7 settings.wait: wait is the number 0; want a duration"},
		{"wait: 1d-1h", `1:7 settings.wait: wait is the text "1d-1h"; want a duration`},
		{"wait: 65535d9223372036854775807ns", `1:7 settings.wait: wait is the text "65535d9223372036854775807ns"; want a duration`},
		{"bytes_max: -1KB", `1:12 settings.bytes_max: bytes_max is the text "-1KB"; want a number of bytes, such as 64KiB or 10MB`},
		{"bytes_max: 99999999TB", `1:12 settings.bytes_max: bytes_max is the text "99999999TB"; want a number of bytes, such as 64KiB or 10MB`},
		{"pair: [1]", "1:7 settings.pair: a list of 1; want 2"},
		{"list: {a: b}", "1:7 settings.list: list is a mapping; want a list"},
		{"list:", "1:6 settings.list: list is empty; want a list"},
		{"text:", "1:6 settings.text: text is empty; want a text"},
		{"text: [a]", "1:7 settings.text: text is a list; want a text"},
		{"labels: {a: {b: c}}", "1:13 settings.labels.a: a is a mapping; want a text"},
		{"nested: {count: -1}", "1:17 settings.nested.count: count: below zero"},
		{"nested: {nmae: x}", `1:10 settings.nested.nmae: unknown setting "nmae"`},
		{"text: a\ntext: b", `2:1 settings.text: "text" stands here twice`},
		{"line:\n  a: b\n  c: wrong", "3:3 settings.line: wrong it is"},
		{"other: many", `1:8 settings.other: other is the text "many"; want a whole number`},
		{"[1]", "1:1 settings: settings is a list; want a mapping of text, yes, small, big, ratio, wait, bytes_max, list, pair, labels, nested, pointer, free, line, deep"},
	}
	for _, c := range cases {
		var into everything
		got := strings.Join(decodeText(t, c.text, &into), "\n")
		if c.text == "line:\n  a: b\n  c: wrong" {
			got = strings.Replace(got, "3:6", "3:3", 1) // the value's column or its key's: the line is what was said
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.text, diff)
		}
	}
}

// A struct written out and read again is the same, whatever its numbers.
func TestDecodeReadsWhatYAMLWrites(t *testing.T) {
	for _, want := range []inner{{}, {Name: "x", Count: 7}, {Name: "5", Count: 0}, {Name: "null"}, {Name: "a: b # c\n\"d\""}, {Name: "${X} $$"}} {
		text, err := yaml.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got inner
		if findings := decodeText(t, string(text), &got); findings != nil || got != want {
			t.Errorf("%q: got %+v, %v; want %+v", text, got, findings, want)
		}
	}
}

func TestDecodeWithoutSettings(t *testing.T) {
	got := inner{Count: -1}
	findings := pipeline.Decode(&yaml.Node{}, &got, "settings", "x")
	if len(findings) != 1 || findings[0].Message != "count: below zero" {
		t.Errorf("defaults that are wrong: %v", findings)
	}
}
