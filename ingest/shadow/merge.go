package shadow

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"

	"hearthline/ingest/names"
)

// ErrInvalid says that a change cannot be understood or is over a limit; its text says why.
var ErrInvalid = errors.New("invalid state")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// Limits of what a state holds, beside those of the settings.
const (
	nameBytesMax   = 128
	numberBytesMax = 40
)

// parse reads one value of JSON. What is nested deeper than depthMax is refused before anything is made of it.
func parse(data []byte, depthMax int) (any, error) {
	if deep := depth(data); deep > depthMax {
		return nil, invalid("nested %d deep; at most %d", deep, depthMax)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, invalid("%v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, invalid("something stands behind the value")
	}
	return v, check(v)
}

// depth is how deep brackets are nested, whether or not they belong together.
func depth(data []byte) (deepest int) {
	open, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			open++
			deepest = max(deepest, open)
		case c == '}' || c == ']':
			open--
		}
	}
	return deepest
}

// check says what no state may hold.
func check(v any) error {
	switch v := v.(type) {
	case map[string]any:
		for name, inner := range v {
			if name == "" || len(name) > nameBytesMax {
				return invalid("a name of %d bytes; want 1 to %d", len(name), nameBytesMax)
			}
			if why := names.BadRunes(name, false); why != "" {
				return invalid("the name %.40q %s", name, why)
			}
			if err := check(inner); err != nil {
				return err
			}
		}
	case []any:
		for _, inner := range v {
			if err := check(inner); err != nil {
				return err
			}
		}
	case json.Number:
		if f, err := v.Float64(); err != nil || math.IsInf(f, 0) || len(v) > numberBytesMax {
			return invalid("the number %.40s; want one of at most %d characters that a float64 can hold", v, numberBytesMax)
		}
	}
	return nil
}

// merge applies a merge patch (RFC 7396, section 2). Target and patch are not changed; the result shares with them.
func merge(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	out := map[string]any{}
	if t, ok := target.(map[string]any); ok {
		for name, v := range t {
			out[name] = v
		}
	}
	for name, v := range p {
		if v == nil {
			delete(out, name)
		} else {
			out[name] = merge(out[name], v)
		}
	}
	return out
}

// difference is what of the desired state the reported one does not have: objects member by member, anything else as a whole.
func difference(desired, reported map[string]any) map[string]any {
	var out map[string]any
	for name, want := range desired {
		is, ok := reported[name]
		missing := want
		if ok && same(want, is) {
			continue
		}
		wantObject, isObject := object(want), object(is)
		if wantObject != nil && isObject != nil {
			inner := difference(wantObject, isObject)
			if len(inner) == 0 {
				continue
			}
			missing = inner
		}
		if out == nil {
			out = map[string]any{}
		}
		out[name] = missing
	}
	return out
}

func object(v any) map[string]any {
	o, _ := v.(map[string]any)
	return o
}

// same says whether two values are equal. Numbers are when they mean the same: a device may say 40.0 where 40 was asked.
func same(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for name, v := range a {
			if w, ok := b[name]; !ok || !same(v, w) {
				return false
			}
		}
		return true
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, same)
	case json.Number:
		b, ok := b.(json.Number)
		return ok && (a == b || sameNumber(a, b))
	}
	return a == b
}

// sameNumber compares whole numbers exactly, others as float64.
func sameNumber(a, b json.Number) bool {
	_, wholeA := strconv.ParseInt(a.String(), 10, 64)
	_, wholeB := strconv.ParseInt(b.String(), 10, 64)
	if wholeA == nil && wholeB == nil {
		return false // their texts differ, but for -0
	}
	x, errX := a.Float64()
	y, errY := b.Float64()
	return errX == nil && errY == nil && x == y
}

// members counts the members of all objects in a value.
func members(v any) (n int) {
	switch v := v.(type) {
	case map[string]any:
		n = len(v)
		for _, inner := range v {
			n += members(inner)
		}
	case []any:
		for _, inner := range v {
			n += members(inner)
		}
	}
	return n
}

// encode writes a state, names in order, so that equal states are equal bytes.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
