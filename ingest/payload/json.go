package payload

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"hearthline/ingest/names"
)

// jsonReader pulls values out of one JSON text (RFC 8259) held in memory, without a tree in between: the rows of a
// message are short, many and of one known shape, and this is the one place where text is parsed. encoding/json
// is its oracle in the tests. Strings it returns point into the text, or into arena when they held escapes: they
// are valid as long as the text is not overwritten.
type jsonReader struct {
	b     []byte
	at    int
	arena []byte
}

// jsonDepthMax is how deep values that are skipped may nest.
const jsonDepthMax = 32

// errSyntax is text that is not JSON, or no UTF-8.
type errSyntax struct {
	at   int
	what string
}

func (e *errSyntax) Error() string { return fmt.Sprintf("at byte %d: %s", e.at, e.what) }

// errNotFinite is a number beyond float64, or NaN and Infinity, which JSON does not know but devices send.
var errNotFinite = errors.New("not a finite number")

func (r *jsonReader) reset(b []byte) {
	r.b, r.at = b, 0
	if cap(r.arena) > 64<<10 {
		r.arena = nil
	}
	r.arena = r.arena[:0]
}

func (r *jsonReader) fail(what string) error { return &errSyntax{at: r.at, what: what} }

// peek is the next byte that is no white space, 0 at the end.
func (r *jsonReader) peek() byte {
	for ; r.at < len(r.b); r.at++ {
		switch c := r.b[r.at]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// take consumes the next byte that is no white space if it is c.
func (r *jsonReader) take(c byte) bool {
	if r.peek() == c && r.at < len(r.b) {
		r.at++
		return true
	}
	return false
}

func (r *jsonReader) expect(c byte) error {
	if !r.take(c) {
		return r.fail("want '" + string(c) + "'")
	}
	return nil
}

// end says whether only white space is left.
func (r *jsonReader) end() bool { r.peek(); return r.at >= len(r.b) }

// text reads a string.
func (r *jsonReader) text() (string, error) {
	if err := r.expect('"'); err != nil {
		return "", err
	}
	start, ascii := r.at, true
	for i := plain(r.b, start); i < len(r.b); i++ {
		switch c := r.b[i]; {
		case c == '"':
			s := r.b[start:i]
			if !ascii && !utf8.Valid(s) {
				return "", r.fail("a string is not UTF-8")
			}
			r.at = i + 1
			return names.View(s), nil
		case c == '\\':
			return r.escaped(start, i)
		case c < 0x20:
			r.at = i
			return "", r.fail("a control character in a string")
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	r.at = len(r.b)
	return "", r.fail("a string does not end")
}

// plain gives the place of the first byte from i on that is not plain ASCII text of a JSON string, or one of the last seven. It
// looks at eight at once (the lowest bit that is set is true, those above it may not be).
func plain(b []byte, i int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for ; i+8 <= len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		quote, escape := w^(ones*'"'), w^(ones*'\\')
		if m := (w | (w-ones*' ')&^w | (quote-ones)&^quote | (escape-ones)&^escape) & highs; m != 0 {
			return i + bits.TrailingZeros64(m)/8
		}
	}
	return i
}

// escaped reads on a string that began at start and holds its first escape at i.
func (r *jsonReader) escaped(start, i int) (string, error) {
	from := len(r.arena)
	r.arena = append(r.arena, r.b[start:i]...)
	for i < len(r.b) {
		switch c := r.b[i]; {
		case c == '"':
			r.at = i + 1
			s := r.arena[from:]
			if !utf8.Valid(s) {
				return "", r.fail("a string is not UTF-8")
			}
			return names.View(s), nil
		case c < 0x20:
			r.at = i
			return "", r.fail("a control character in a string")
		case c != '\\':
			r.arena = append(r.arena, c)
			i++
		default:
			n, err := r.escape(i)
			if err != nil {
				return "", err
			}
			i += n
		}
	}
	r.at = len(r.b)
	return "", r.fail("a string does not end")
}

// escape appends what the escape at i stands for and gives its length.
func (r *jsonReader) escape(i int) (int, error) {
	r.at = i
	if i+1 >= len(r.b) {
		return 0, r.fail("a string does not end")
	}
	const names, stand = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	if k := strings.IndexByte(names, r.b[i+1]); k >= 0 {
		r.arena = append(r.arena, stand[k])
		return 2, nil
	}
	u, ok := r.hex(i)
	if !ok {
		return 0, r.fail("a wrong escape in a string")
	}
	n := 6
	if utf16.IsSurrogate(u) {
		low, ok := r.hex(i + 6)
		if u = utf16.DecodeRune(u, low); !ok || u == utf8.RuneError {
			return 0, r.fail("half a surrogate pair in a string")
		}
		n = 12
	}
	r.arena = utf8.AppendRune(r.arena, u)
	return n, nil
}

func (r *jsonReader) hex(i int) (rune, bool) {
	if i+6 > len(r.b) || r.b[i] != '\\' || r.b[i+1] != 'u' {
		return 0, false
	}
	var u rune
	for _, c := range r.b[i+2 : i+6] {
		switch {
		case c >= '0' && c <= '9':
			u = u<<4 | rune(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			u = u<<4 | rune(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return u, true
}

// literal reads the characters of a number and says whether it is an integer.
func (r *jsonReader) literal() (lit string, integer bool, err error) {
	r.peek()
	start, i := r.at, r.at
	digits := func() int {
		from := i
		for i < len(r.b) && r.b[i] >= '0' && r.b[i] <= '9' {
			i++
		}
		return i - from
	}
	if i < len(r.b) && r.b[i] == '-' {
		i++
	}
	zero := i < len(r.b) && r.b[i] == '0'
	n := digits()
	if n == 0 || zero && n > 1 {
		return "", false, r.fail("want a number")
	}
	integer = true
	if i < len(r.b) && r.b[i] == '.' {
		integer = false
		i++
		if digits() == 0 {
			return "", false, r.fail("want digits after the point")
		}
	}
	if i < len(r.b) && r.b[i]|0x20 == 'e' {
		integer = false
		if i++; i < len(r.b) && (r.b[i] == '+' || r.b[i] == '-') {
			i++
		}
		if digits() == 0 {
			return "", false, r.fail("want digits in the exponent")
		}
	}
	r.at = i
	return names.View(r.b[start:i]), integer, nil
}

// number reads a number. errNotFinite is not a syntax error: the text goes on after it.
func (r *jsonReader) number() (float64, error) {
	if r.notFinite() {
		return 0, errNotFinite
	}
	lit, _, err := r.literal()
	if err != nil {
		return 0, err
	}
	if f, ok := short(lit); ok {
		return f, nil
	}
	f, err := strconv.ParseFloat(lit, 64)
	if err != nil {
		return 0, errNotFinite
	}
	return f, nil
}

// powers are those of ten that a float64 holds exactly, as far as short needs them.
var powers = [...]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15}

// short is the value of a literal with at most 15 digits and without exponent, as nearly all readings are. Digits and power of ten are
// exact float64s then, so their quotient is the nearest there is (Clinger 1990), as strconv's.
func short(lit string) (float64, bool) {
	if len(lit) > 16 {
		return 0, false
	}
	var digits uint64
	negative, point := false, -1
	for i := 0; i < len(lit); i++ {
		switch c := lit[i]; {
		case c >= '0' && c <= '9':
			digits = digits*10 + uint64(c-'0')
		case c == '.':
			point = i
		case c == '-':
			negative = true
		default:
			return 0, false
		}
	}
	if digits > 999_999_999_999_999 {
		return 0, false
	}
	f := float64(digits)
	if point >= 0 {
		f /= powers[len(lit)-1-point]
	}
	if negative {
		f = -f
	}
	return f, true
}

// notFinite consumes NaN, Infinity and their likes: no JSON, but worth a clearer reason than "malformed".
func (r *jsonReader) notFinite() bool {
	switch c := r.peek(); {
	case c == '-' && r.at+1 < len(r.b) && r.b[r.at+1] >= 'A':
	case c == 'N' || c == 'n' || c == 'I' || c == 'i' || c == '+':
	default:
		return false
	}
	rest := r.b[r.at:]
	for _, name := range []string{"NaN", "nan", "-NaN", "-nan", "Infinity", "-Infinity", "+Infinity", "inf", "-inf", "Inf", "-Inf"} {
		if bytes.HasPrefix(rest, []byte(name)) {
			r.at += len(name)
			return true
		}
	}
	return false
}

// word consumes true, false or null if it is next.
func (r *jsonReader) word(w string) bool {
	r.peek()
	if bytes.HasPrefix(r.b[r.at:], []byte(w)) {
		r.at += len(w)
		return true
	}
	return false
}

// skip passes over one value of any kind.
func (r *jsonReader) skip(depth int) error {
	switch c := r.peek(); c {
	case '"':
		_, err := r.text()
		return err
	case '{', '[':
		if depth >= jsonDepthMax {
			return r.fail("nested too deeply")
		}
		r.at++
		if c == '{' {
			return r.members(func(string) error { return r.skip(depth + 1) })
		}
		return r.elements(func() error { return r.skip(depth + 1) })
	case 't', 'f', 'n':
		if r.word("true") || r.word("false") || r.word("null") {
			return nil
		}
	}
	if r.notFinite() {
		return nil
	}
	_, _, err := r.literal()
	return err
}

// members reads an object whose '{' is consumed: each is called at each value and must consume it.
func (r *jsonReader) members(each func(name string) error) error {
	if r.take('}') {
		return nil
	}
	for {
		name, err := r.text()
		if err != nil {
			return err
		}
		if err := r.expect(':'); err != nil {
			return err
		}
		if err := each(name); err != nil {
			return err
		}
		if r.take('}') {
			return nil
		}
		if err := r.expect(','); err != nil {
			return err
		}
	}
}

// elements reads an array whose '[' is consumed.
func (r *jsonReader) elements(each func() error) error {
	if r.take(']') {
		return nil
	}
	for {
		if err := each(); err != nil {
			return err
		}
		if r.take(']') {
			return nil
		}
		if err := r.expect(','); err != nil {
			return err
		}
	}
}
