package pipeline

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Decode sets the fields of into, a pointer to a struct of settings, from node, strictly, and says everything that
// is wrong with node. What node does not name keeps its value: the defaults.
//
// A setting is an exported field with a yaml tag; `yaml:"-"`, and fields without a tag, are none. Structs nest, with
// ",inline" without a name of their own. Slices are replaced, maps added to. Beyond YAML's scalars:
//
//   - time.Duration is written with its unit: 250ms, 30s, 5m, 36h, 7d.
//   - a whole number whose key speaks of bytes (bytes_max) may be written as a size: 64KiB, 10MB.
//   - a type with UnmarshalYAML(*yaml.Node) or UnmarshalText is asked.
//
// A struct with a method Validate() error is asked at the end, once its fields could be set. Its error becomes
// findings, one each when it was made by errors.Join; a message that starts with the name of a setting, then a colon
// or a space, is shown at that setting.
//
// path and file are put into the findings. A node of kind 0 (no settings in the file) leaves the defaults, which
// are validated all the same.
func Decode(node *yaml.Node, into any, path, file string) []Finding {
	d := &decoder{file: file}
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		panic(fmt.Sprintf("pipeline.Decode into %T; want a pointer", into))
	}
	d.value(node, v.Elem(), path, field{})
	return sorted(d.findings)
}

// Validator is a struct of settings that can say more than its types do.
type Validator interface{ Validate() error }

type decoder struct {
	file     string
	findings []Finding
	owner    map[*yaml.Node]*yaml.Node // of a value, the key it stands under
	unset    map[Pos]bool              // where a variable could not be expanded: nothing more is said of that value
}

// under notes whose value n is, so that what a mapping lacks is shown at its key.
func (d *decoder) under(key, n *yaml.Node) {
	if d.owner == nil {
		d.owner = map[*yaml.Node]*yaml.Node{}
	}
	d.owner[n] = key
}

// home is where a mapping as a whole is shown: at its key where it has one.
func (d *decoder) home(n *yaml.Node) *yaml.Node {
	if key := d.owner[n]; key != nil {
		return key
	}
	return n
}

// find notes what is wrong with n.
func (d *decoder) find(n *yaml.Node, path, hint, format string, args ...any) {
	at := Pos{max(1, n.Line), max(1, n.Column)}
	if d.unset[at] {
		return
	}
	d.findings = append(d.findings, Finding{File: d.file, Pos: at, Path: path, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// want notes that n is of the wrong kind.
func (d *decoder) want(n *yaml.Node, path, hint, format string, args ...any) {
	what := path[strings.LastIndexByte(path, '.')+1:]
	if what == "" {
		what = "the file"
	}
	d.find(n, path, hint, "%s is %s; want %s", clip(what), kindOf(n), fmt.Sprintf(format, args...))
}

// nodeDecoder is a type of this package that reads a node itself.
type nodeDecoder interface {
	decodeNode(d *decoder, n *yaml.Node, path string)
}

// places says where in the file the keys of a struct stand: the value by the key's name, "" the struct's own key.
type places map[string]Pos

// of is the place of the first of keys that is in the file, or of the struct itself.
func (p places) of(keys ...string) Pos {
	for _, k := range keys {
		if at, ok := p[k]; ok {
			return at
		}
	}
	return p[""]
}

// field is a setting of a struct.
type field struct {
	key   string
	index []int
	need  bool // must be in the file
	bytes bool // a whole number that may be written as a size
	rest  bool // an inline map, which takes the keys that no field has
	// secret: "true" for one that may come from the environment only, "names" for a mapping in which a key's name says so.
	secret string
}

// fieldsOf lists the settings of a struct, those of inline structs among them.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		inline := slices.Contains(strings.Split(options, ","), "inline")
		switch {
		case name == "-" || !f.IsExported() && !f.Anonymous:
		case inline && f.Type.Kind() == reflect.Struct:
			for _, in := range fieldsOf(f.Type) {
				in.index = append([]int{i}, in.index...)
				fields = append(fields, in)
			}
		case inline && f.Type.Kind() == reflect.Map:
			fields = append(fields, field{index: f.Index, rest: true})
		case name != "" && f.IsExported():
			fields = append(fields, field{key: name, index: f.Index, need: f.Tag.Get("need") == "true", bytes: strings.Contains(name, "bytes"), secret: f.Tag.Get("secret")})
		}
	}
	return fields
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	nodeType     = reflect.TypeFor[yaml.Node]()
	placesType   = reflect.TypeFor[places]()
)

// value sets v from n.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string, f field) {
	switch n.Kind {
	case yaml.DocumentNode:
		if len(n.Content) == 1 {
			d.value(n.Content[0], v, path, f)
		}
		return
	case yaml.AliasNode:
		d.find(n, path, "write the settings out", "an alias (*%s); anchors and aliases are not supported", n.Value)
		return
	}
	if f.secret != "" {
		before := len(d.findings)
		if d.outOfSight(n, path, f.secret == "true"); len(d.findings) > before {
			return // and let no other finding quote it
		}
	}
	switch {
	case v.Type() == nodeType:
		v.Set(reflect.ValueOf(*n))
	case v.Type() == durationType:
		d.duration(n, v, path)
	case v.Kind() == reflect.Pointer:
		d.pointer(n, v, path, f)
	case v.CanAddr() && d.custom(n, v, path):
	case v.Kind() == reflect.Struct:
		d.structure(n, v, path)
	case v.Kind() == reflect.Map:
		d.mapping(n, v, path)
	case v.Kind() == reflect.Slice || v.Kind() == reflect.Array:
		d.list(n, v, path)
	case v.Kind() == reflect.Interface && v.NumMethod() == 0:
		var any any
		if err := n.Decode(&any); err != nil {
			d.find(n, path, "", "%s", plainError(err))
			return
		}
		if any != nil {
			v.Set(reflect.ValueOf(any))
		}
	default:
		d.scalar(n, v, path, f)
	}
}

// secretNames are keys, of headers above all, whose values are secrets.
var secretNames = regexp.MustCompile(`(?i)auth|cookie|token|secret|password|key`)

// outOfSight refuses a secret that stands in the file, where everybody reads it who reads the plan: version control, a
// ConfigMap, a colleague. all says that every scalar is one, else the names of the keys do.
func (d *decoder) outOfSight(n *yaml.Node, path string, all bool) {
	switch n.Kind {
	case yaml.SequenceNode:
		for i, c := range n.Content {
			d.outOfSight(c, fmt.Sprintf("%s[%d]", path, i), all)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			d.outOfSight(n.Content[i+1], join(path, n.Content[i].Value), all || secretNames.MatchString(n.Content[i].Value))
		}
	case yaml.ScalarNode:
		if all && n.Tag != "" && n.Value != "" && !isNull(n) {
			d.find(n, path, "write ${NAME}, and set the variable where the process runs", "a secret that stands in the file, for all to read who read the plan")
		}
	}
}

// pointer sets v to a new value, so that what a default points to, perhaps shared by all instances, is left alone.
func (d *decoder) pointer(n *yaml.Node, v reflect.Value, path string, f field) {
	if isNull(n) {
		v.SetZero()
		return
	}
	fresh := reflect.New(v.Type().Elem())
	if !v.IsNil() {
		fresh.Elem().Set(v.Elem())
	}
	d.value(n, fresh.Elem(), path, f)
	v.Set(fresh)
}

// custom lets the type read n itself. It says whether the type does.
func (d *decoder) custom(n *yaml.Node, v reflect.Value, path string) bool {
	switch u := v.Addr().Interface().(type) {
	case nodeDecoder:
		u.decodeNode(d, n, path)
	case yaml.Unmarshaler:
		if err := safely(func() error { return u.UnmarshalYAML(n) }); err != nil {
			d.refused(n, path, err)
		}
	case encoding.TextUnmarshaler:
		if n.Kind != yaml.ScalarNode || isNull(n) {
			d.want(n, path, "", "a text")
		} else if err := safely(func() error { return u.UnmarshalText([]byte(n.Value)) }); err != nil {
			d.refused(n, path, err)
		}
	default:
		return false
	}
	return true
}

var errorLine = regexp.MustCompile(`^line (\d+): `)

// refused notes what a type said of n. A message that starts with "line 7: " is shown there.
func (d *decoder) refused(n *yaml.Node, path string, err error) {
	text := plainError(err)
	if n.Tag == "" && n.Value != "" { // from the environment
		text = strings.ReplaceAll(text, n.Value, "${…}")
	}
	if m := errorLine.FindStringSubmatch(text); m != nil {
		text = text[len(m[0]):]
		if line, err := strconv.Atoi(m[1]); err == nil && n.Line != line {
			n = cmp.Or(onLine(n, line), n)
		}
	}
	d.find(n, path, "", "%s", text)
}

// onLine is the first node of a tree that starts on a line, nil when none does.
func onLine(n *yaml.Node, line int) *yaml.Node {
	if n.Line == line {
		return n
	}
	for _, c := range n.Content {
		if found := onLine(c, line); found != nil {
			return found
		}
	}
	return nil
}

// safely turns a panic in a settings struct's own code into an error: lint goes on.
func safely(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return f()
}

// plainError is an error's text on one line, without what the YAML package puts before it.
func plainError(err error) string {
	if te := (*yaml.TypeError)(nil); errors.As(err, &te) {
		return strings.Join(te.Errors, "; ")
	}
	return strings.ReplaceAll(strings.TrimPrefix(err.Error(), "yaml: "), "\n", "; ")
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, path string) {
	before := len(d.findings)
	fields := fieldsOf(v.Type())
	at := places{"": {max(1, d.home(n).Line), max(1, d.home(n).Column)}}
	switch {
	case n.Kind == yaml.MappingNode:
		d.keys(n, v, path, fields, at)
	case n.Kind == 0 || isNull(n):
	default:
		d.want(n, path, "", "a mapping of %s", strings.Join(keysOf(fields), ", "))
		return
	}
	for _, f := range fields {
		if _, ok := at[f.key]; f.need && !ok {
			d.find(d.home(n), path, "", "%s is missing", join(path, f.key))
		}
	}
	for i := range v.NumField() {
		if v.Type().Field(i).Type == placesType {
			v.Field(i).Set(reflect.ValueOf(at))
		}
	}
	if validator, ok := v.Addr().Interface().(Validator); ok && len(d.findings) == before {
		if err := safely(validator.Validate); err != nil {
			d.invalid(err, path, at)
		}
	}
}

func keysOf(fields []field) []string {
	var keys []string
	for _, f := range fields {
		if f.key != "" {
			keys = append(keys, f.key)
		}
	}
	return keys
}

// keys sets the fields that the mapping names, and notes where their values stand.
func (d *decoder) keys(n *yaml.Node, v reflect.Value, path string, fields []field, at places) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		down := join(path, key.Value)
		if _, twice := at[key.Value]; twice && key.Value != "" {
			d.find(key, down, "remove one", "%q stands here twice", key.Value)
			continue
		}
		at[key.Value] = Pos{value.Line, value.Column}
		d.under(key, value)
		j := slices.IndexFunc(fields, func(f field) bool { return f.key == key.Value && !f.rest })
		if j >= 0 {
			d.value(value, v.FieldByIndex(fields[j].index), down, fields[j])
			continue
		}
		if j = slices.IndexFunc(fields, func(f field) bool { return f.rest }); j >= 0 {
			d.entry(key, value, v.FieldByIndex(fields[j].index), down)
			continue
		}
		d.unknown(key, path, keysOf(fields))
	}
}

func (d *decoder) unknown(key *yaml.Node, path string, known []string) {
	down, what := join(path, key.Value), "unknown key"
	if strings.Contains("."+path+".", ".settings.") {
		what = "unknown setting"
	}
	hint := didYouMean(key.Value, known)
	if len(known) == 0 {
		hint = "there are none"
	}
	d.find(key, down, hint, "%s %q", what, clip(key.Value))
}

// invalid makes findings of a Validate's error.
func (d *decoder) invalid(err error, path string, at places) {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range many.Unwrap() {
			d.invalid(one, path, at)
		}
		return
	}
	text := plainError(err)
	f := Finding{File: d.file, Pos: at[""], Path: path, Message: text}
	if end := strings.IndexAny(text, ": "); end > 0 {
		if pos, ok := at[text[:end]]; ok {
			f.Pos, f.Path = pos, join(path, text[:end])
		}
	}
	d.findings = append(d.findings, f)
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind == 0 || isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.want(n, path, "", "a mapping")
		return
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	} else { // the default may be shared by all instances
		clone := reflect.MakeMapWithSize(v.Type(), v.Len())
		for k, e := range v.Seq2() {
			clone.SetMapIndex(k, e)
		}
		v.Set(clone)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		d.entry(n.Content[i], n.Content[i+1], v, join(path, n.Content[i].Value))
	}
}

// entry adds one entry to the map v, starting from the one that is there.
func (d *decoder) entry(key, value *yaml.Node, v reflect.Value, path string) {
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	k := reflect.New(v.Type().Key()).Elem()
	before := len(d.findings)
	if k.Kind() == reflect.String && !k.Addr().Type().Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		k.SetString(key.Value) // a key needs no quotes: 1, on and null are names like any other
	} else {
		d.value(key, k, path, field{})
	}
	e := reflect.New(v.Type().Elem()).Elem()
	if len(d.findings) == before {
		if old := v.MapIndex(k); old.IsValid() {
			e.Set(old)
		}
	}
	d.under(key, value)
	d.value(value, e, path, field{})
	if len(d.findings) == before {
		v.SetMapIndex(k, e)
	}
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string) {
	switch {
	case n.Kind == 0:
		return
	case n.Kind == yaml.ScalarNode && !isNull(n):
		d.want(n, path, fmt.Sprintf("write [%s]", shown(n)), "a list")
		return
	case n.Kind != yaml.SequenceNode:
		d.want(n, path, "", "a list")
		return
	case v.Kind() == reflect.Array && v.Len() != len(n.Content):
		d.find(n, path, "", "a list of %d; want %d", len(n.Content), v.Len())
		return
	case v.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	}
	for i, c := range n.Content {
		d.value(c, v.Index(i), fmt.Sprintf("%s[%d]", path, i), field{})
	}
}

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

// Keys lists the settings that a struct of settings has, sorted: what a misspelt one is compared with.
func Keys(settings any) []string {
	t := reflect.TypeOf(settings)
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct {
		return nil
	}
	keys := map[string]bool{}
	for _, k := range keysOf(fieldsOf(t)) {
		keys[k] = true
	}
	return slices.Sorted(maps.Keys(keys))
}

func valueOf(pointer any) reflect.Value { return reflect.ValueOf(pointer).Elem() }
