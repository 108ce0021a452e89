package pipeline

import (
	"slices"

	"go.yaml.in/yaml/v3"
)

// keyed is a stream that is written, or {stream: NAME, key: [COLUMN, …]}: one whose rows are parted by columns.
type keyed struct {
	stream name
	key    names
}

// keyedFields is what decodes the mapping.
type keyedFields struct {
	Stream name  `yaml:"stream" need:"true"`
	Key    names `yaml:"key" need:"true"`
}

// isKeyed tells {stream: …, key: …} from streams by the names of outputs.
func isKeyed(n *yaml.Node) bool {
	if n.Kind != yaml.MappingNode || len(n.Content) != 4 {
		return false
	}
	has := []string{n.Content[0].Value, n.Content[2].Value}
	return slices.Contains(has, "stream") && slices.Contains(has, "key")
}

func (k *keyed) decodeNode(d *decoder, n *yaml.Node, path string) {
	if n.Kind != yaml.MappingNode {
		k.stream.decodeNode(d, n, path)
		return
	}
	var f keyedFields
	d.into(n, &f, path)
	k.stream, k.key = f.Stream, f.Key
}

// key notes by which columns a stream is parted.
func (d *decoder) key(k keyed, path string, s *Stage) {
	if k.key == nil || k.stream.text == "" {
		return
	}
	var columns []string
	for _, c := range k.key {
		if slices.Contains(columns, c.text) {
			d.find(nodeAt(c.pos), path+".key", "remove one", "%s stands here twice", clip(c.text))
		}
		columns = append(columns, c.text)
		s.at["key/"+k.stream.text+"/"+c.text] = c.pos
	}
	if k.stream.text == Drop {
		d.find(nodeAt(k.key[0].pos), path+".key", "leave it out", "%s is no stream that could have a key", Drop)
		return
	}
	if s.Keys == nil {
		s.Keys = map[string][]string{}
	}
	if old, ok := s.Keys[k.stream.text]; ok && !slices.Equal(old, columns) {
		d.find(nodeAt(k.key[0].pos), path+".key", "give each a stream of its own", "%s is given two keys", k.stream.text)
	}
	s.Keys[k.stream.text] = columns
}
