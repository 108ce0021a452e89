package cli

import (
	"bytes"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"hearthline/deploy"
	"hearthline/ingest"
	"hearthline/pipeline"
)

var updateSchema = flag.Bool("update", false, "write pipeline.schema.json and docs/pipeline.svg anew")

// pipeline.schema.json is what editors complete pipeline.yaml by. Its descriptions are the comments at the settings.
func TestSchemaIsCurrent(t *testing.T) {
	comments := &fieldComments{t: t, packages: map[string]map[string]string{}}
	cat := newCatalog()
	cat.Gateway = func() any {
		g := ingest.New()
		g.HandshakesMax = 0 // by default as many as this machine's cores allow: no default for a file
		return g
	}
	got, err := pipeline.JSONSchema(cat, deploy.Defaults(), comments.of)
	if err != nil {
		t.Fatal(err)
	}
	const file = "../pipeline.schema.json"
	if *updateSchema {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, got) {
		t.Errorf("%s is not what the settings are now; run: go test ./cli -run TestSchemaIsCurrent -update", file)
	}
	validateOwnFile(t, got)
	if comments.found < 20 {
		t.Errorf("%d settings have a comment", comments.found)
	}
}

// validateOwnFile holds the project's own pipeline.yaml against the schema.
func validateOwnFile(t *testing.T, text []byte) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("pipeline.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("pipeline.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile("../pipeline.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var own any
	if err := yaml.Unmarshal(file, &own); err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(own); err != nil {
		t.Errorf("pipeline.yaml: %v", err)
	}
}

// docs/pipeline.svg is the picture of pipeline.yaml that the README shows.
func TestPictureIsCurrent(t *testing.T) {
	plan, findings, err := pipeline.Lint(t.Context(), "../pipeline.yaml", newCatalog())
	if err != nil || plan == nil {
		t.Fatal(err, findings)
	}
	const file = "../docs/pipeline.svg"
	if *updateSchema {
		if err := os.WriteFile(file, []byte(plan.SVG()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != plan.SVG() {
		t.Errorf("%s is not pipeline.yaml's picture now; run: go test ./cli -run TestPictureIsCurrent -update", file)
	}
}

// fieldComments reads the comments at the fields of this module's structs.
type fieldComments struct {
	t        *testing.T
	packages map[string]map[string]string // import path → Type.Field → comment
	found    int
}

func (c *fieldComments) of(t reflect.Type, field string) string {
	dir, ours := strings.CutPrefix(t.PkgPath(), "hearthline/")
	if !ours {
		return ""
	}
	if c.packages[dir] == nil {
		c.packages[dir] = c.read(filepath.Join("..", dir))
	}
	text := c.packages[dir][t.Name()+"."+field]
	if text != "" {
		c.found++
	}
	return text
}

func (c *fieldComments) read(dir string) map[string]string {
	comments := map[string]string{}
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		c.t.Fatalf("no source in %s: %v", dir, err)
	}
	for _, file := range files {
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			c.t.Fatal(err)
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if structure, ok := spec.Type.(*ast.StructType); ok {
				for _, f := range structure.Fields.List {
					for _, name := range f.Names {
						comments[spec.Name.Name+"."+name.Name] = commentOf(f)
					}
				}
			}
			return true
		})
	}
	return comments
}

// commentOf is the comment over a field or, without one, beside it, as one line.
func commentOf(f *ast.Field) string {
	text := f.Doc.Text()
	if text == "" {
		text = f.Comment.Text()
	}
	return strings.Join(strings.Fields(text), " ")
}
