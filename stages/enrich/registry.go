package enrich

import (
	"bytes"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"go.yaml.in/yaml/v3"
)

// place names a device.
type place struct{ home, device string }

// details are what the registry says of a device: room, kind, model, zone. "" is not said.
type details [4]string

// added are the columns that details become.
var added = [4]string{"room", "kind", "model", "zone"}

// registry is one version of the file.
type registry struct {
	format  string // yaml, csv
	content []byte
	hash    string // of content
	packed  []byte // content as snapshots hold it; made when first asked for
	devices map[place]details
}

func formatOf(path string) (string, error) {
	switch ext := strings.ToLower(filepath.Ext(path)); ext {
	case ".yaml", ".yml":
		return "yaml", nil
	case ".csv":
		return "csv", nil
	default:
		return "", fmt.Errorf("registry %s: its name must end in .yaml, .yml or .csv", path)
	}
}

// parse reads a registry. Errors carry the line.
func parse(format string, content []byte) (*registry, error) {
	sum := sha256.Sum256(content)
	r := &registry{format: format, content: content, hash: hex.EncodeToString(sum[:]), devices: make(map[place]details)}
	var err error
	switch format {
	case "yaml":
		err = r.parseYAML(content)
	case "csv":
		err = r.parseCSV(content)
	default:
		err = fmt.Errorf("format %q is neither yaml nor csv", format)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// pack compresses the content, once.
func (r *registry) pack() ([]byte, error) {
	if r.packed == nil {
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		r.packed = w.EncodeAll(r.content, []byte{})
		if err := w.Close(); err != nil {
			return nil, err
		}
	}
	return r.packed, nil
}

// columnsOf are all the columns, or keys, of a registry.
var columnsOf = append([]string{"home", "device"}, added[:]...)

func (r *registry) add(line int, values map[string]string) error {
	p := place{values["home"], values["device"]}
	if p.home == "" || p.device == "" {
		return fmt.Errorf("line %d: a device needs a home and a device", line)
	}
	if _, twice := r.devices[p]; twice {
		return fmt.Errorf("line %d: device %s of home %s is there twice", line, p.device, p.home)
	}
	var d details
	for i, c := range added {
		d[i] = values[c]
	}
	r.devices[p] = d
	return nil
}

func (r *registry) parseYAML(content []byte) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(content, &doc); err != nil {
		return err
	}
	if len(doc.Content) == 0 {
		return nil // an empty file knows no device
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode || len(root.Content) != 2 || root.Content[0].Value != "devices" || root.Content[1].Kind != yaml.SequenceNode {
		return fmt.Errorf("line %d: a registry is a mapping with the one key devices, a list", root.Line)
	}
	for _, item := range root.Content[1].Content {
		if item.Kind == yaml.AliasNode {
			item = item.Alias
		}
		if item.Kind != yaml.MappingNode {
			return fmt.Errorf("line %d: a device is a mapping with %s", item.Line, strings.Join(columnsOf, ", "))
		}
		values := map[string]string{}
		for i := 0; i+1 < len(item.Content); i += 2 {
			k, v := item.Content[i], item.Content[i+1]
			if !slices.Contains(columnsOf, k.Value) {
				return fmt.Errorf("line %d: unknown key %q; a device has %s", k.Line, k.Value, strings.Join(columnsOf, ", "))
			}
			if v.Kind != yaml.ScalarNode {
				return fmt.Errorf("line %d: %s must be a text", v.Line, k.Value)
			}
			if _, twice := values[k.Value]; twice {
				return fmt.Errorf("line %d: %s is there twice", k.Line, k.Value)
			}
			if v.Tag != "!!null" {
				values[k.Value] = v.Value
			}
		}
		if err := r.add(item.Line, values); err != nil {
			return err
		}
	}
	return nil
}

func (r *registry) parseCSV(content []byte) error {
	in := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(content, []byte("\ufeff"))))
	in.ReuseRecord = true
	head, err := in.Read()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	names := slices.Clone(head)
	for i, c := range names {
		names[i] = strings.TrimSpace(c)
		if !slices.Contains(columnsOf, names[i]) {
			return fmt.Errorf("line 1: unknown column %q; a registry has %s", c, strings.Join(columnsOf, ", "))
		}
		if slices.Contains(names[:i], names[i]) {
			return fmt.Errorf("line 1: column %s is there twice", names[i])
		}
	}
	for {
		row, err := in.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err // encoding/csv names the line
		}
		line, _ := in.FieldPos(0)
		values := make(map[string]string, len(names))
		for i, v := range row {
			values[names[i]] = strings.TrimSpace(v)
		}
		if err := r.add(line, values); err != nil {
			return err
		}
	}
}
