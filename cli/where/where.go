// Package where picks rows of a record by a condition, written as after SQL's WHERE: value > 25 AND metric = 'temperature'.
//
// It is a small part of SQL, which needs no engine: comparisons of a column with a value (= <> != < <= > >=), IN, BETWEEN, LIKE,
// IS NULL, columns that are true or false, AND, OR, NOT and parentheses. What it takes, and what it means, is what SQL does: a
// comparison with NULL is neither true nor false. Libraries of expressions for Go have a language of their own (==, &&, nil), in which
// what works here would not work in a stage's SQL.
package where

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
)

// Filter is a condition that fits a schema.
type Filter struct{ root node }

// truth is SQL's: a condition on NULL is unknown.
type truth int8

const (
	no truth = iota
	unknown
	yes
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// node is a part of a condition. bind finds its columns in a record; the function says what is true of a row.
type node interface {
	bind(rec arrow.Record) func(row int) truth
}

// Rows gives the rows of a record of the filter's schema that the condition is true of.
func (f *Filter) Rows(rec arrow.Record) []int {
	is := f.root.bind(rec)
	var rows []int
	for row := range int(rec.NumRows()) {
		if is(row) == yes {
			rows = append(rows, row)
		}
	}
	return rows
}

type both struct{ a, b node }

func (n both) bind(rec arrow.Record) func(int) truth {
	a, b := n.a.bind(rec), n.b.bind(rec)
	return func(row int) truth { return min(a(row), b(row)) }
}

type either struct{ a, b node }

func (n either) bind(rec arrow.Record) func(int) truth {
	a, b := n.a.bind(rec), n.b.bind(rec)
	return func(row int) truth { return max(a(row), b(row)) }
}

type not struct{ of node }

func (n not) bind(rec arrow.Record) func(int) truth {
	of := n.of.bind(rec)
	return func(row int) truth { return yes - of(row) }
}

type isNull struct{ column int }

func (n isNull) bind(rec arrow.Record) func(int) truth {
	col := rec.Column(n.column)
	return func(row int) truth { return truthOf(col.IsNull(row)) }
}

// numbers is a condition on a column of numbers, instants (microseconds) or truths (0 and 1).
type numbers struct {
	column int
	is     func(float64) bool
	whole  func(int64) bool // nil where is does
}

func (n numbers) bind(rec arrow.Record) func(int) truth {
	col := rec.Column(n.column)
	of := func(value func(int) truth) func(int) truth {
		return func(row int) truth {
			if col.IsNull(row) {
				return unknown
			}
			return value(row)
		}
	}
	switch a := col.(type) {
	case *array.Float64:
		return of(func(row int) truth { return truthOf(n.is(a.Value(row))) })
	case *array.Int64:
		return of(func(row int) truth { return truthOf(n.whole(a.Value(row))) })
	case *array.Int32:
		return of(func(row int) truth { return truthOf(n.whole(int64(a.Value(row)))) })
	case *array.Timestamp:
		return of(func(row int) truth { return truthOf(n.whole(int64(a.Value(row)))) })
	case *array.Boolean:
		return of(func(row int) truth {
			if a.Value(row) {
				return truthOf(n.whole(1))
			}
			return truthOf(n.whole(0))
		})
	}
	return func(int) truth { return unknown } // Parse gives no other
}

// texts is a condition on a column of texts. Of a dictionary each text is looked at once.
type texts struct {
	column int
	is     func(string) bool
}

func (n texts) bind(rec arrow.Record) func(int) truth {
	switch a := rec.Column(n.column).(type) {
	case *array.String:
		return func(row int) truth {
			if a.IsNull(row) {
				return unknown
			}
			return truthOf(n.is(a.Value(row)))
		}
	case *array.Dictionary:
		values, ok := a.Dictionary().(*array.String)
		if !ok {
			break
		}
		known := make([]truth, values.Len())
		for i := range known {
			known[i] = truthOf(n.is(values.Value(i)))
		}
		return func(row int) truth {
			if a.IsNull(row) {
				return unknown
			}
			return known[a.GetValueIndex(row)]
		}
	}
	return func(int) truth { return unknown }
}

// Parse reads a condition on rows of a schema. Its errors say at which character, from 1, and what there is instead.
func Parse(text string, schema *arrow.Schema) (*Filter, error) {
	if len(text) > textMax {
		return nil, fmt.Errorf("a condition of %d characters; at most %d", len(text), textMax)
	}
	p := &parser{text: text, schema: schema}
	if err := p.lex(); err != nil {
		return nil, err
	}
	root, err := p.or(0)
	if err == nil && p.peek().kind != end {
		err = p.wrong("AND, OR, or the end")
	}
	if err != nil {
		return nil, err
	}
	return &Filter{root}, nil
}

const (
	textMax = 16 << 10
	deepMax = 100 // parentheses and NOTs in each other
)

type kind int8

const (
	end    kind = iota
	word        // a column, or a word of SQL in upper case
	quoted      // a column in double quotes
	number
	str
	comparison
	sign
)

type token struct {
	kind kind
	text string // without quotes
	at   int    // byte
}

var lexemes = regexp.MustCompile(`^(?:([A-Za-z_][A-Za-z0-9_]*)|"((?:[^"]|"")+)"|(-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)|'((?:[^']|'')*)'|(<=|>=|<>|!=|[=<>])|([(),]))`)

type parser struct {
	text   string
	schema *arrow.Schema
	tokens []token
	next   int
}

func (p *parser) lex() error {
	for at := 0; ; {
		at += len(p.text[at:]) - len(strings.TrimLeft(p.text[at:], " \t\r\n"))
		if at == len(p.text) {
			p.tokens = append(p.tokens, token{kind: end, at: at})
			return nil
		}
		m := lexemes.FindStringSubmatchIndex(p.text[at:])
		if m == nil {
			return p.errorAt(at, "%.10q is nothing that stands here; texts are in 'single quotes'", p.text[at:])
		}
		for k := word; k <= sign; k++ {
			if from, to := m[2*int(k)], m[2*int(k)+1]; from >= 0 {
				text := p.text[at+from : at+to]
				switch k {
				case quoted:
					text = strings.ReplaceAll(text, `""`, `"`)
				case str:
					text = strings.ReplaceAll(text, "''", "'")
				}
				p.tokens = append(p.tokens, token{k, text, at})
			}
		}
		at += m[1]
	}
}

func (p *parser) errorAt(at int, format string, args ...any) error {
	return fmt.Errorf("character %d: %s", len([]rune(p.text[:at]))+1, fmt.Sprintf(format, args...))
}

func (p *parser) peek() token { return p.tokens[p.next] }

func (p *parser) wrong(want string) error {
	t := p.peek()
	if t.kind == end {
		return p.errorAt(t.at, "it ends here; want %s", want)
	}
	return p.errorAt(t.at, "%q; want %s", t.text, want)
}

// is takes the next token if it is a word of SQL, or a sign.
func (p *parser) is(text string) bool {
	t := p.peek()
	if t.kind == word && strings.EqualFold(t.text, text) || t.kind == sign && t.text == text {
		p.next++
		return true
	}
	return false
}

func (p *parser) or(deep int) (node, error) {
	a, err := p.and(deep)
	for err == nil && p.is("OR") {
		var b node
		b, err = p.and(deep)
		a = either{a, b}
	}
	return a, err
}

func (p *parser) and(deep int) (node, error) {
	a, err := p.not(deep)
	for err == nil && p.is("AND") {
		var b node
		b, err = p.not(deep)
		a = both{a, b}
	}
	return a, err
}

func (p *parser) not(deep int) (node, error) {
	if deep > deepMax {
		return nil, p.errorAt(p.peek().at, "more than %d parentheses in each other", deepMax)
	}
	if p.is("NOT") {
		of, err := p.not(deep + 1)
		return not{of}, err
	}
	if !p.is("(") {
		return p.condition()
	}
	of, err := p.or(deep + 1)
	if err == nil && !p.is(")") {
		err = p.wrong(")")
	}
	return of, err
}

// condition is one on a column.
func (p *parser) condition() (node, error) {
	t := p.peek()
	if t.kind != word && t.kind != quoted {
		return nil, p.wrong("a column: " + p.columns())
	}
	column := -1
	for i, f := range p.schema.Fields() {
		if f.Name == t.text || column < 0 && strings.EqualFold(f.Name, t.text) {
			column = i
		}
	}
	if column < 0 {
		return nil, p.errorAt(t.at, "there is no column %q; there are %s", t.text, p.columns())
	}
	p.next++
	c := &columnAt{p, column, p.schema.Field(column)}
	if p.is("IS") {
		negated := p.is("NOT")
		if !p.is("NULL") {
			return nil, p.wrong("NULL")
		}
		return negate(isNull{column}, negated), nil
	}
	negated := p.is("NOT")
	switch {
	case p.is("IN"):
		n, err := c.in()
		return negate(n, negated), err
	case p.is("BETWEEN"):
		n, err := c.between()
		return negate(n, negated), err
	case p.is("LIKE"):
		n, err := c.like()
		return negate(n, negated), err
	case negated:
		return nil, p.wrong("IN, BETWEEN or LIKE")
	}
	if op := p.peek(); op.kind == comparison {
		p.next++
		return c.compare(op.text)
	}
	if c.field.Type.ID() == arrow.BOOL {
		return numbers{column: column, whole: func(x int64) bool { return x == 1 }}, nil
	}
	return nil, p.wrong("=, <>, <, <=, >, >=, IN, BETWEEN, LIKE or IS NULL")
}

func negate(n node, negated bool) node {
	if negated {
		return not{n}
	}
	return n
}

func (p *parser) columns() string {
	var names []string
	for _, f := range p.schema.Fields() {
		names = append(names, f.Name)
	}
	return strings.Join(names, ", ")
}

// columnAt is a column of which something is said.
type columnAt struct {
	*parser
	column int
	field  arrow.Field
}

func isText(t arrow.DataType) bool {
	d, ok := t.(*arrow.DictionaryType)
	return t.ID() == arrow.STRING || ok && d.ValueType.ID() == arrow.STRING
}

func (c *columnAt) compare(op string) (node, error) {
	if isText(c.field.Type) {
		v, err := c.text()
		return texts{c.column, func(x string) bool { return holds(op, strings.Compare(x, v)) }}, err
	}
	v, err := c.value()
	return v.node(c.column, op), err
}

// holds says whether an order (-1, 0, 1) is what a sign asks for.
func holds(op string, order int) bool {
	switch op {
	case "=":
		return order == 0
	case "<>", "!=":
		return order != 0
	case "<":
		return order < 0
	case "<=":
		return order <= 0
	case ">":
		return order > 0
	}
	return order >= 0
}

func (c *columnAt) text() (string, error) {
	t := c.peek()
	if t.kind != str {
		return "", c.wrong(fmt.Sprintf("a text in 'single quotes', as %s holds", c.field.Name))
	}
	c.next++
	return t.text, nil
}

// operand is what a column of numbers, instants or truths is compared with.
type operand struct {
	float float64
	whole int64
	exact bool // whole is it
}

func (v operand) node(column int, op string) node {
	return numbers{column: column, is: func(x float64) bool {
		if math.IsNaN(x) {
			return holds(op, 1) // as the engine has it: NaN is above all
		}
		return holds(op, compare(x, v.float))
	}, whole: func(x int64) bool {
		if v.exact {
			return holds(op, compare(x, v.whole))
		}
		return holds(op, compare(float64(x), v.float))
	}}
}

func compare[T int64 | float64](x, y T) int {
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// value reads one for the column's type.
func (c *columnAt) value() (v operand, err error) {
	t := c.peek()
	switch c.field.Type.ID() {
	case arrow.FLOAT64, arrow.INT64, arrow.INT32:
		if t.kind != number {
			return v, c.wrong(fmt.Sprintf("a number, as %s holds", c.field.Name))
		}
		if v.float, err = strconv.ParseFloat(t.text, 64); err != nil && !errors.Is(err, strconv.ErrRange) {
			return v, c.wrong("a number")
		}
		v.whole, err = strconv.ParseInt(t.text, 10, 64)
		v.exact = err == nil
	case arrow.TIMESTAMP:
		at, err := instant(t)
		if err != nil {
			return v, c.wrong(fmt.Sprintf("a time, as %s holds: '2024-01-31 10:00' or '2024-01-31T10:00:00Z', in UTC", c.field.Name))
		}
		v = operand{whole: at.UnixMicro(), exact: true}
	case arrow.BOOL:
		switch {
		case t.kind == word && strings.EqualFold(t.text, "true"):
			v = operand{whole: 1, exact: true}
		case t.kind == word && strings.EqualFold(t.text, "false"):
			v = operand{exact: true}
		default:
			return v, c.wrong(fmt.Sprintf("true or false, as %s holds", c.field.Name))
		}
	default:
		return v, c.errorAt(t.at, "%s is a %s, which is not compared here; --sql can", c.field.Name, c.field.Type)
	}
	c.next++
	return v, nil
}

func instant(t token) (time.Time, error) {
	if t.kind != str {
		return time.Time{}, errors.New("no text")
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05.999999999", "2006-01-02 15:04", "2006-01-02"} {
		if at, err := time.Parse(layout, t.text); err == nil {
			return at, nil
		}
	}
	return time.Time{}, errors.New("no time")
}

func (c *columnAt) in() (node, error) {
	if !c.is("(") {
		return nil, c.wrong("(")
	}
	var any node
	for {
		one, err := c.compare("=")
		if err != nil {
			return nil, err
		}
		if any == nil {
			any = one
		} else {
			any = either{any, one}
		}
		if c.is(")") {
			return any, nil
		}
		if !c.is(",") {
			return nil, c.wrong(", or )")
		}
	}
}

func (c *columnAt) between() (node, error) {
	least, err := c.compare(">=")
	if err != nil {
		return nil, err
	}
	if !c.is("AND") {
		return nil, c.wrong("AND")
	}
	most, err := c.compare("<=")
	return both{least, most}, err
}

// like takes % for any characters and _ for one.
func (c *columnAt) like() (node, error) {
	if !isText(c.field.Type) {
		return nil, c.errorAt(c.peek().at, "%s holds no texts", c.field.Name)
	}
	pattern, err := c.text()
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString("(?s)^")
	for _, r := range pattern {
		switch r {
		case '%':
			b.WriteString(".*")
		case '_':
			b.WriteString(".")
		default:
			b.WriteString(regexp.QuoteMeta(string(r)))
		}
	}
	re, err := regexp.Compile(b.String() + "$")
	if err != nil {
		return nil, c.errorAt(c.peek().at, "%q is no pattern", pattern)
	}
	return texts{c.column, re.MatchString}, nil
}
