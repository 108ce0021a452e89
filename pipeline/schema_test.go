package pipeline_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"hearthline/pipeline"
)

func fakeSchema(t *testing.T) (string, *jsonschema.Schema) {
	t.Helper()
	describe := func(t reflect.Type, field string) string { return t.Name() + " " + field }
	text, err := pipeline.JSONSchema(catalog(), nil, describe)
	if err != nil {
		t.Fatal(err)
	}
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
		t.Fatalf("not a JSON Schema: %v", err)
	}
	return string(text), schema
}

func TestJSONSchemaGolden(t *testing.T) {
	text, _ := fakeSchema(t)
	golden(t, "testdata/schema/fake.json", text)
}

// What lint takes, an editor takes; of what lint refuses, an editor refuses what can be seen in one place.
func TestJSONSchemaAgreesWithLint(t *testing.T) {
	_, schema := fakeSchema(t)
	validate := func(file string) error {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var doc any
		if err := yaml.Unmarshal(text, &doc); err != nil {
			return fmt.Errorf("not YAML: %w", err)
		}
		return schema.Validate(doc)
	}
	for _, file := range []string{"testdata/graph/homes.yaml", "testdata/lint/good.yaml", "testdata/graph/small.yaml", "testdata/graph/tangled.yaml"} {
		if err := validate(file); err != nil {
			t.Errorf("%s is refused: %v", file, err)
		}
	}
	for _, name := range []string{"unknown-keys", "wrong-types", "wrong-settings", "missing-keys", "names", "unknown-nodes", "not-a-mapping"} {
		file := filepath.Join("testdata/lint", name+".yaml")
		if err := validate(file); err == nil {
			t.Errorf("%s is taken", file)
		} else if strings.HasPrefix(err.Error(), "not YAML") {
			t.Errorf("%s: %v", file, err)
		}
	}
}
