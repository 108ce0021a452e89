package pipeline

import (
	"bytes"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// Query is a stage that is written in pipeline.yaml itself: `sql: SELECT … FROM input …`.
type Query struct {
	Text string
	Pos  Pos

	style yaml.Style
}

func (q *Query) decodeNode(d *decoder, n *yaml.Node, path string) {
	q.Pos, q.style = Pos{n.Line, n.Column}, n.Style
	if n.Kind != yaml.ScalarNode || isNull(n) || n.Value == "" {
		d.want(n, path, "write sql: SELECT … FROM input …", "a query")
		return
	}
	d.into(n, &q.Text, path)
}

// queryError is an error that knows its place in a query: a byte of the text, or less than 0.
type queryError interface {
	error
	Place() int
}

// at is where a byte of the query stands in the file; where the file writes the query with escapes, the query's beginning.
func (q *Query) at(source []byte, place int) Pos {
	if place < 0 || place > len(q.Text) {
		return q.Pos
	}
	rest, pos, ok := q.begin(source)
	for i := 0; ok && i < place; {
		want, n := utf8.DecodeRuneInString(q.Text[i:])
		got, m := utf8.DecodeRune(rest)
		switch {
		case want == got && !unicode.IsSpace(want):
			i, rest, pos.Column = i+n, rest[m:], pos.Column+1
		case unicode.IsSpace(want) && unicode.IsSpace(got):
			for i < place && unicode.IsSpace(rune(q.Text[i])) {
				i++
			}
			rest, pos = afterSpace(rest, pos)
		default:
			ok = false
		}
	}
	if !ok {
		return q.Pos
	}
	return pos
}

// begin is the text of the file where the query begins.
func (q *Query) begin(source []byte) (rest []byte, pos Pos, ok bool) {
	rest, pos = source, Pos{1, 1}
	for pos.Line < q.Pos.Line {
		_, after, found := bytes.Cut(rest, []byte("\n"))
		if !found {
			return nil, pos, false
		}
		rest, pos.Line = after, pos.Line+1
	}
	skip := q.Pos.Column - 1
	switch {
	case q.style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0:
		skip++
	case q.style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			return nil, pos, false
		}
		rest, pos, skip = rest[end+1:], Pos{pos.Line + 1, 1}, 0
	}
	for ; skip > 0 && len(rest) > 0; skip-- {
		_, n := utf8.DecodeRune(rest)
		rest, pos.Column = rest[n:], pos.Column+1
	}
	if first, _ := utf8.DecodeRuneInString(q.Text); !unicode.IsSpace(first) {
		rest, pos = afterSpace(rest, pos)
	}
	return rest, pos, true
}

func afterSpace(rest []byte, pos Pos) ([]byte, Pos) {
	for len(rest) > 0 {
		r, n := utf8.DecodeRune(rest)
		if !unicode.IsSpace(r) {
			break
		}
		if pos.Column++; r == '\n' {
			pos = Pos{pos.Line + 1, 1}
		}
		rest = rest[n:]
	}
	return rest, pos
}

// version gives what makes a version of a stage: one of the catalogue, or of SQL; nil when there was something to find.
func (p *planner) version(s *Stage, path, name, use string, sql *Query, settings *yaml.Node, at places) func() flow.Stage {
	if sql == nil {
		return instance(p, p.cat.Stages, "stage", path, use, settings, at)
	}
	switch _, used := at["use"]; {
	case sql.Text == "": // which is said already
		return nil
	case used:
		p.find(at.of("use"), path+".use", "keep one", "stage %s has sql and use", name)
		return nil
	case p.cat.Stages[name] != nil:
		p.find(sql.Pos, path+".sql", "take another name, or leave sql out", "there is a stage %s, beside the sql here", name)
		return nil
	case p.cat.SQL == nil:
		p.find(sql.Pos, path+".sql", "", "there are no stages in SQL here")
		return nil
	}
	made := map[string]func() flow.Stage{name: p.cat.SQL(name, sql.Text, s.From)}
	return instance(p, made, "stage", path, name, settings, at)
}
