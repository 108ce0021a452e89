package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"unicode"

	"hearthline/flow"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

// hostile are names that a device may give itself: they clear a screen, retitle a window, read backwards, end a line.
var hostile = []string{
	"\x1b[2J\x1b]0;owned\x07", "a\r\nlevel=ERROR msg=forged", "\u009b2J", "\u202egnp.exe", "tab\tand\x00nul", "\u2028", "\x7f", "\U000e0041tag",
	"\xff\xfe", "../../../../tmp/outside", "%2e%2e%2foutside", "plain, with ümlaut and 熱",
}

func dangerous(s string) string {
	for _, r := range s {
		if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			return string(r)
		}
	}
	return ""
}

// Whatever prints what devices are called, prints nothing that a terminal obeys, and no line that is not there.
func TestTerminalIsNotObeyed(t *testing.T) {
	for _, name := range hostile {
		rec := rowNamed(name)
		for _, asJSON := range []bool{false, true} {
			var out bytes.Buffer
			watcher := rowPrinter(&tableRows{out: bufio.NewWriter(&out), fields: rec.Schema().Fields()})
			if asJSON {
				watcher = &jsonRows{bufio.NewWriter(&out)}
			}
			if err := watcher.record(rec); err != nil {
				t.Error(err)
			}
			lines := strings.Count(out.String(), "\n")
			if bad := dangerous(out.String()); bad != "" || asJSON && lines != 1 || !asJSON && lines != 2 {
				t.Errorf("tap of %q (json %v): %q in %d lines", name, asJSON, out.String(), lines)
			}
			if asJSON {
				var back map[string]any
				if err := json.Unmarshal(out.Bytes(), &back); err != nil || back["home"] != string([]rune(name)) {
					t.Errorf("tap of %q as JSON gives %q (%v)", name, back["home"], err)
				}
			}
		}
		for _, asJSON := range []bool{false, true} {
			var out bytes.Buffer
			log := newLogger(&out, &options{jsonLog: asJSON})
			log.Error(name, "device", name, "error", errors.New(name), slog.Group("row", "home", name))
			if bad := dangerous(out.String()); bad != "" || strings.Count(out.String(), "\n") != 1 {
				t.Errorf("log of %q (json %v): %q", name, asJSON, out.String())
			}
		}
		if bad := dangerous(harmlessLines("it says " + name)); bad != "" {
			t.Errorf("error with %q: %q", name, bad)
		}
	}
}

// rowNamed is a row whose texts are all the same.
func rowNamed(name string) arrow.Record {
	b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{{Name: "home", Type: arrow.BinaryTypes.String}, {Name: "attributes", Type: flow.AttributesType}}, nil))
	defer b.Release()
	b.Field(0).(*array.StringBuilder).Append(name)
	m := b.Field(1).(*array.MapBuilder)
	m.Append(true)
	m.KeyBuilder().(*array.StringBuilder).Append(name)
	m.ItemBuilder().(*array.StringBuilder).Append(name)
	return b.NewRecord()
}
