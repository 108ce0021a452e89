package pipeline

import (
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// shown is a scalar's text for a hint; what came from the environment is not shown.
func shown(n *yaml.Node) string {
	if n.Tag == "" {
		return "${…}"
	}
	return clip(n.Value)
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string, f field) {
	if n.Kind == 0 {
		return
	}
	switch v.Kind() {
	case reflect.String:
		// A tag other than !!str means that YAML reads the bare text as a number or a truth value; the author may
		// have meant either. Text from the environment has no such doubt.
		if n.Kind != yaml.ScalarNode || n.Tag != "!!str" && n.Tag != "" {
			hint := ""
			if n.Kind == yaml.ScalarNode && !isNull(n) {
				hint = "write " + strconv.Quote(clip(n.Value)) + " in quotes"
			}
			d.want(n, path, hint, "a text")
			return
		}
		v.SetString(n.Value)
	case reflect.Bool:
		if n.Kind == yaml.ScalarNode && (n.Value == "true" || n.Value == "false") && n.ShortTag() == "!!bool" {
			v.SetBool(n.Value == "true")
			return
		}
		d.want(n, path, "", "true or false")
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		d.integer(n, v, path, f)
	case reflect.Float32, reflect.Float64:
		x, ok := number(n)
		if !ok || math.IsNaN(x) || v.OverflowFloat(x) && !math.IsInf(x, 0) {
			d.want(n, path, "", "a number")
			return
		}
		v.SetFloat(x)
	default:
		d.find(n, path, "", "settings of type %s cannot be written in a file", v.Type())
	}
}

// number is the value of a scalar that YAML reads as a number.
func number(n *yaml.Node) (float64, bool) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" && n.ShortTag() != "!!float" {
		return 0, false
	}
	var x float64
	err := n.Decode(&x)
	return x, err == nil
}

func (d *decoder) integer(n *yaml.Node, v reflect.Value, path string, f field) {
	want := "a whole number"
	if f.bytes {
		want = "a number of bytes, such as 64KiB or 10MB"
		if size, ok := parseSize(n.Value); ok && n.Kind == yaml.ScalarNode {
			d.setInteger(n, v, path, size)
			return
		}
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" {
		if x, ok := number(n); !ok || x != math.Trunc(x) || math.Abs(x) > 1<<53 { // 1e6 is whole
			d.want(n, path, "", "%s", want)
			return
		}
	}
	if v.CanUint() {
		var x uint64
		if err := n.Decode(&x); err != nil || v.OverflowUint(x) {
			d.want(n, path, "", "a whole number from 0 to %d", uint64(math.MaxUint64)>>(64-v.Type().Bits()))
			return
		}
		v.SetUint(x)
		return
	}
	var x int64
	if err := n.Decode(&x); err != nil || v.OverflowInt(x) {
		d.want(n, path, "", "a number of %d bits", v.Type().Bits())
		return
	}
	v.SetInt(x)
}

func (d *decoder) setInteger(n *yaml.Node, v reflect.Value, path string, x int64) {
	switch {
	case v.CanUint() && !v.OverflowUint(uint64(x)):
		v.SetUint(uint64(x))
	case v.CanInt() && !v.OverflowInt(x):
		v.SetInt(x)
	default:
		d.want(n, path, "", "a number of %d bits", v.Type().Bits())
	}
}

var sizeUnits = map[string]int64{"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

// parseSize reads 64KiB, 1.5MB: a number and a unit of [sizeUnits], without a space or with one.
func parseSize(s string) (int64, bool) {
	end := strings.LastIndexAny(s, "0123456789") + 1
	unit, ok := sizeUnits[strings.TrimSpace(s[end:])]
	x, err := strconv.ParseFloat(s[:end], 64)
	x *= float64(unit)
	if !ok || err != nil || x < 0 || x >= 1<<62 || x != math.Trunc(x) {
		return 0, false
	}
	return int64(x), true
}

func (d *decoder) duration(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind == 0 {
		return
	}
	hint := "write it with a unit: 250ms, 30s, 5m, 36h, 7d"
	if n.Kind != yaml.ScalarNode {
		d.want(n, path, hint, "a duration")
		return
	}
	t, ok := parseDuration(n.Value)
	if !ok {
		d.want(n, path, hint, "a duration")
		return
	}
	v.SetInt(int64(t))
}

// parseDuration is time.ParseDuration with days in front: 7d, 1d12h. A bare 0 is not a duration.
func parseDuration(s string) (time.Duration, bool) {
	var days time.Duration
	if before, after, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseUint(before, 10, 16)
		if err != nil {
			return 0, false
		}
		days, s = time.Duration(n)*24*time.Hour, after
		if s == "" {
			return days, true
		}
		if s[0] == '-' || s[0] == '+' {
			return 0, false
		}
	}
	if s == "0" {
		return 0, false
	}
	t, err := time.ParseDuration(s)
	if err != nil || days > math.MaxInt64-max(t, 0) {
		return 0, false
	}
	return days + t, true
}
