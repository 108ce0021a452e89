package cases

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/apache/arrow/go/v15/arrow"
)

// Limits of what is shown of an output that is not what was wanted.
const (
	diffLinesMax = 20
	diffTextMax  = 120  // characters of a value
	alignedMax   = 1000 // rows; of more, the first is compared with the first, and so on
)

// difference is one column of a row, or a row as a whole, that is not what was wanted.
type difference struct {
	row       int // of what came; below 0: none
	line      int // of the wanted row; 0: none
	column    string
	got, want string
}

// diff says how the rows of an output differ from those wanted, column by column; "" when they do not.
func (c *Case) diff(output string, got []outRow, schema *arrow.Schema, want []cells) string {
	var all []difference
	for _, p := range c.pairs(got, schema, want) {
		switch {
		case p.got < 0:
			all = append(all, difference{row: -1, line: want[p.want].line, column: "(row)", got: "missing", want: textOf(want[p.want])})
		case p.want < 0:
			all = append(all, difference{row: p.got, column: "(row)", got: got[p.got].String(), want: "not wanted"})
		default:
			for _, d := range c.diffRow(got[p.got], schema, want[p.want]) {
				d.row, d.line = p.got, want[p.want].line
				all = append(all, d)
			}
		}
	}
	if len(all) == 0 {
		return ""
	}
	lines := [][]string{{"row", "line", "column", "got", "want"}}
	for _, d := range all[:min(len(all), diffLinesMax)] {
		lines = append(lines, []string{numbered(d.row >= 0, d.row), numbered(d.line > 0, d.line), d.column, clip(d.got), clip(d.want)})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: rows that came: %d, wanted: %d\n", output, len(got), len(want))
	writeTable(&b, lines)
	if more := len(all) - diffLinesMax; more > 0 {
		fmt.Fprintf(&b, "  … and %d more\n", more)
	}
	return b.String()
}

func numbered(there bool, n int) string {
	if !there {
		return "-"
	}
	return fmt.Sprint(n)
}

func clip(s string) string {
	if utf8.RuneCountInString(s) <= diffTextMax {
		return s
	}
	return string([]rune(s)[:diffTextMax-1]) + "…"
}

// writeTable writes cells under each other.
func writeTable(b *strings.Builder, lines [][]string) {
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, line := range lines {
		text := ""
		for i, cell := range line {
			text += "  " + cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
		}
		b.WriteString(strings.TrimRight(text, " ") + "\n")
	}
}

// diffRow compares the columns that are wanted, and where all are, the others too.
func (c *Case) diffRow(got outRow, schema *arrow.Schema, want cells) (all []difference) {
	for _, name := range slices.Sorted(maps.Keys(want.by)) {
		if !schema.HasField(name) {
			all = append(all, difference{column: name, got: "no such column; there are " + names(schema), want: want.by[name].Value})
			continue
		}
		f := schema.Field(schema.FieldIndices(name)[0])
		w, err := c.cell(want.by[name], f.Type)
		if err != nil {
			all = append(all, difference{column: name, got: "a " + f.Type.String(), want: err.Error()})
			continue
		}
		if g, _ := got.value(name); !equal(g, w, c.tolerance) {
			all = append(all, difference{column: name, got: text(g), want: text(w)})
		}
	}
	if c.exact {
		for i, name := range got.columns {
			if want.by[name] == nil && got.values[i] != nil {
				all = append(all, difference{column: name, got: text(got.values[i]), want: "null (exact)"})
			}
		}
	}
	return all
}

// pair is a row that came beside one that was wanted; either is below 0 where there is none.
type pair struct{ got, want int }

// pairs sets the rows that came beside those wanted, in order, so that as many as can be are equal: one that is missing does not make
// all that follow it differ.
func (c *Case) pairs(got []outRow, schema *arrow.Schema, want []cells) []pair {
	same := func(i, j int) bool { return len(c.diffRow(got[i], schema, want[j])) == 0 }
	first := 0
	for first < len(got) && first < len(want) && same(first, first) {
		first++
	}
	var all []pair
	for i := range first {
		all = append(all, pair{i, i})
	}
	n, m := len(got)-first, len(want)-first
	if n == m && n == 0 {
		return all
	}
	if n*m > alignedMax*alignedMax {
		return append(all, unequal(first, len(got), first, len(want))...)
	}
	// longest[i][j] is how many rows from i and j on can be equal.
	longest, equals := make([][]int, n+1), make([][]bool, n)
	for i := range longest {
		longest[i] = make([]int, m+1)
	}
	for i := n - 1; i >= 0; i-- {
		equals[i] = make([]bool, m)
		for j := m - 1; j >= 0; j-- {
			if equals[i][j] = same(first+i, first+j); equals[i][j] {
				longest[i][j] = longest[i+1][j+1] + 1
			} else {
				longest[i][j] = max(longest[i+1][j], longest[i][j+1])
			}
		}
	}
	fromI, fromJ := 0, 0
	for i, j := 0, 0; ; {
		switch {
		case i < n && j < m && equals[i][j]:
			all = append(append(all, unequal(first+fromI, first+i, first+fromJ, first+j)...), pair{first + i, first + j})
			i, j = i+1, j+1
			fromI, fromJ = i, j
		case i < n && (j == m || longest[i+1][j] >= longest[i][j+1]):
			i++
		case j < m:
			j++
		default:
			return append(all, unequal(first+fromI, len(got), first+fromJ, len(want))...)
		}
	}
}

// unequal pairs rows of which none are equal, one after the other.
func unequal(i, toI, j, toJ int) (all []pair) {
	for ; i < toI || j < toJ; i, j = i+1, j+1 {
		p := pair{-1, -1}
		if i < toI {
			p.got = i
		}
		if j < toJ {
			p.want = j
		}
		all = append(all, p)
	}
	return all
}

// textOf is a wanted row as it was written.
func textOf(want cells) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(want.by)) {
		all = append(all, name+": "+want.by[name].Value)
	}
	return "{" + strings.Join(all, ", ") + "}"
}
