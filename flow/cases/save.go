package cases

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// Save writes a case that gives rows (borrowed) to a stage and wants none of them refused. settings are those of the stage, as
// pipeline.yaml has them; nil for none. What must come out is left to its author: `want: any`.
func Save(name string, settings *yaml.Node, rows arrow.Record) ([]byte, error) {
	input := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, f := range rows.Schema().Fields() {
		t, err := typeName(f.Type)
		if err != nil {
			return nil, fmt.Errorf("column %q: %w", f.Name, err)
		}
		column := f.Name + " " + t
		if f.Nullable {
			column += " null"
		}
		input.Content = append(input.Content, plainNode(column))
	}
	in := &yaml.Node{Kind: yaml.SequenceNode}
	for i := range int(rows.NumRows()) {
		row := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
		for c, f := range rows.Schema().Fields() {
			if v := valueOf(rows.Column(c), i); v != nil {
				row.Content = append(row.Content, plainNode(f.Name), valueNode(v))
			}
		}
		in.Content = append(in.Content, row)
	}
	step := mappingOf("in", in, "want", plainNode("any"))
	doc := mappingOf("name", valueNode(name))
	if settings != nil && len(settings.Content) > 0 {
		doc.Content = append(doc.Content, plainNode("settings"), settings)
	}
	doc.Content = append(doc.Content, plainNode("input"), input, plainNode("steps"), &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{step}})
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("write case: %w", err)
	}
	return b.Bytes(), enc.Close()
}

func mappingOf(pairs ...any) *yaml.Node {
	m := &yaml.Node{Kind: yaml.MappingNode}
	for pair := range slices.Chunk(pairs, 2) {
		m.Content = append(m.Content, plainNode(pair[0].(string)), pair[1].(*yaml.Node))
	}
	return m
}

func plainNode(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: s} }

// typeName is how a case calls a type of column.
func typeName(t arrow.DataType) (string, error) {
	for _, name := range slices.Sorted(maps.Keys(types)) {
		if arrow.TypeEqual(t, types[name]) {
			return name, nil
		}
	}
	return "", fmt.Errorf("columns of type %s cannot be written in a case", t)
}

// valueNode is a value as valueOf gives it.
func valueNode(v any) *yaml.Node {
	switch v := v.(type) {
	case flow.Micros:
		return plainNode(v.Time().Format(time.RFC3339Nano))
	case float64:
		switch {
		case math.IsNaN(v):
			return plainNode(".nan")
		case math.IsInf(v, 1):
			return plainNode(".inf")
		case math.IsInf(v, -1):
			return plainNode("-.inf")
		}
		return plainNode(strconv.FormatFloat(v, 'g', -1, 64))
	case int64:
		return plainNode(strconv.FormatInt(v, 10))
	case bool:
		return plainNode(strconv.FormatBool(v))
	case map[string]string:
		m := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
		for _, k := range slices.Sorted(maps.Keys(v)) {
			m.Content = append(m.Content, valueNode(k), valueNode(v[k]))
		}
		return m
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: fmt.Sprint(v)}
}
