package cli

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What devices are called, and what servers answer, is text of strangers. Control characters in it (C0, and C1, which some
// terminals obey too) could move the cursor or retitle a window, and marks of direction could make a line read as what it
// is not.

// harmless replaces in a cell all that is not printed.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, s)
}

// harmlessLines is harmless for texts of several lines.
func harmlessLines(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, s)
}

// harmlessJSON writes what is not printed as JSON's own escapes: the value stays the same. encoding/json does so for C0 alone.
func harmlessJSON(b []byte) []byte {
	clean := true
	for i := 0; clean && i < len(b); i++ {
		clean = b[i] < 0x7f
	}
	if clean {
		return b
	}
	out := make([]byte, 0, len(b)+32)
	for len(b) > 0 {
		r, size := utf8.DecodeRune(b)
		switch {
		case unicode.IsPrint(r) || r == '\n':
			out = append(out, b[:size]...)
		case r > 0xffff:
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		b = b[size:]
	}
	return out
}

// textLines makes what is written through it harmless. slog quotes what is not printed, but for DEL.
type textLines struct{ out io.Writer }

func (t textLines) Write(line []byte) (int, error) {
	if _, err := io.WriteString(t.out, harmlessLines(string(line))); err != nil {
		return 0, err
	}
	return len(line), nil
}

// jsonLines makes each line of JSON that is written through it harmless.
type jsonLines struct{ out io.Writer }

func (j jsonLines) Write(line []byte) (int, error) {
	if _, err := j.out.Write(harmlessJSON(line)); err != nil {
		return 0, err
	}
	return len(line), nil
}
