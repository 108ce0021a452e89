package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mayImport is the house rule: which other rooms a room may import. A room is a top-level folder. Tests may
// besides import what they need of the kits named *test and of streams/embedded.
var mayImport = map[string][]string{
	"flow":      {},
	"blobs":     {"flow"}, // flow/secret, which reads the keys of S3
	"models":    {"flow"},
	"streams":   {"flow"},
	"ingest":    {"flow"},
	"client":    {}, // what others build in: it brings nothing of ours along
	"simulator": {"flow"},
	"stages":    {"flow", "models"},
	"sinks":     {"flow", "blobs"},
	"pipeline":  {"flow", "streams", "blobs"},
	"python":    {"flow"},
	"console":   {"flow", "pipeline"},
	"deploy":    {"pipeline", "blobs"},
	"cli":       nil, // where the rooms meet: everything
	"chaos":     {},  // tests alone, which break whole installations and may import what they count with
	"main.go":   {"cli"},
}

// drawers are names that say nothing of what is inside.
var drawers = []string{"util", "utils", "common", "helpers", "shared", "base", "manager", "misc", "lib"}

func TestRoomsImportOnlyTheirNeighbours(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "zz" || name == "data") {
				return fs.SkipDir
			}
			if slices.Contains(drawers, name) {
				t.Errorf("%s: a folder is named for what is in it, and %q says nothing", path, name)
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		if slices.Contains(drawers, strings.TrimSuffix(name, ".go")) {
			t.Errorf("%s: a file is named for what is in it", path)
		}
		room, _, inside := strings.Cut(filepath.ToSlash(path), "/")
		allowed, known := mayImport[room]
		if !known {
			t.Errorf("%s: room %q is not in the table of rooms", path, room)
			return nil
		}
		seen[room] = true
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			target, _ := strconv.Unquote(spec.Path.Value)
			if spec.Name != nil && spec.Name.Name == "_" && target != "embed" {
				t.Errorf("%s: blank import of %s: what a package does at import is hidden from its reader", path, target)
			}
			rest, ours := strings.CutPrefix(target, "hearthline/")
			if !ours {
				continue
			}
			other, _, _ := strings.Cut(rest, "/")
			if inside && other == room || allowed == nil || slices.Contains(allowed, other) {
				continue
			}
			t.Errorf("%s imports %s: %s may import only %v; rooms meet in cli", path, target, room, allowed)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for room := range mayImport {
		if !seen[room] {
			t.Errorf("room %q of the table has no Go files", room)
		}
	}
}
