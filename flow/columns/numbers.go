package columns

import "hearthline/flow"

// Numbers reads a column of strings as numbers, so that work on a string is done once, not once a row: the number
// is the place in the column's dictionary, or, where it has none, in the order of appearance.
type Numbers struct {
	Size    int // numbers lie below it; the last, Size-1, stands for null
	strings flow.Strings
	dict    bool
	plain   []int32
	values  []string
}

// NumbersOf looks at a column, which it borrows.
func NumbersOf(s flow.Strings) Numbers {
	if v, ok := s.Dictionary(); ok {
		return Numbers{Size: v.Len() + 1, strings: s, dict: true}
	}
	n := Numbers{strings: s, plain: make([]int32, s.Len())}
	index := make(map[string]int32)
	for i := range n.plain {
		if s.IsNull(i) {
			n.plain[i] = Null
			continue
		}
		at, ok := index[s.Value(i)]
		if !ok {
			at = int32(len(n.values))
			index[s.Value(i)] = at
			n.values = append(n.values, s.Value(i))
		}
		n.plain[i] = at
	}
	n.Size = len(n.values) + 1
	return n
}

// At is the number of a row's string.
func (n *Numbers) At(row int) int {
	if n.dict {
		if n.strings.IsNull(row) {
			return n.Size - 1
		}
		return n.strings.Index(row)
	}
	if n.plain[row] == Null {
		return n.Size - 1
	}
	return int(n.plain[row])
}

// Value is the string of a number; "" for null. It borrows the column's memory: clone what is kept.
func (n *Numbers) Value(number int) string {
	if number == n.Size-1 {
		return ""
	}
	if n.dict {
		v, _ := n.strings.Dictionary()
		return v.Value(number)
	}
	return n.values[number]
}
