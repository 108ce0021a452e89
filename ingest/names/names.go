// Package names holds the rule for what homes, devices and metrics may be called.
package names

import (
	"fmt"
	"unicode/utf8"
	"unsafe"
)

// BytesMax bounds the name of a home, a device, a metric.
const BytesMax = 128

// Bad says what is wrong with a name of a home, device or metric, "" when nothing is.
func Bad(s string) string {
	if s == "" {
		return "is empty"
	}
	if len(s) > BytesMax {
		return fmt.Sprintf("has %d bytes; at most %d", len(s), BytesMax)
	}
	ascii := true
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c < 0x20 || c == 0x7f:
			return "holds a control character"
		case c == '/' || c == '+' || c == '#':
			return "holds one of / + #, which topics use"
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	if ascii {
		return ""
	}
	return BadRunes(s, false)
}

// BadRunes says whether s is no UTF-8 or holds control characters; breaks allows tab and line breaks.
func BadRunes(s string, breaks bool) string {
	n := 0
	for n < len(s) && s[n]-' ' <= '~'-' ' { // nearly all of nearly every text
		n++
	}
	s = s[n:]
	for i, c := range s {
		switch {
		case c == utf8.RuneError && !utf8.FullRuneInString(s[i:]), c == utf8.RuneError && !utf8.ValidString(s[i:min(len(s), i+3)]):
			return "is not UTF-8"
		case breaks && (c == '\t' || c == '\n' || c == '\r'):
		case c < 0x20 || c >= 0x7f && c < 0xa0:
			return "holds a control character"
		}
	}
	return ""
}

// View is b as a string, without a copy.
func View(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) } // #nosec G103 -- a view of bytes that do not change while it is used
