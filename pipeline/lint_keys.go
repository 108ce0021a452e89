package pipeline

import (
	"slices"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/flow/columns"
)

// parted looks at how the rows that a stage reads and writes are spread over partitions: the columns of a key must be there,
// rows that are to meet must stand in one partition.
func (p *planner) parted(node *StageNode) {
	path := node.path()
	for _, stream := range sortedKeys(node.Keys) {
		s := p.plan.Streams[stream]
		if s == nil || s.Schema == nil || s.Writer != node.Name {
			continue
		}
		for _, column := range s.Key {
			if err := isKey(s.Schema, column); err != nil {
				p.find(node.at.of("key/"+stream+"/"+column, "to"), path+".to", p.columnsOf(s), "%s cannot be parted by %s: %s", stream, clip(column), strings.TrimPrefix(err.Error(), flow.ErrBad.Error()+": "))
			}
		}
	}
	by, same := p.partedBy(node)
	for _, name := range sortedKeys(node.Outputs) {
		if s := p.plan.Streams[node.Outputs[name]]; s != nil && s.Writer == node.Name {
			if p.spread[s.Name] = s.Key; s.Key == nil {
				p.spread[s.Name] = by
			}
		}
	}
	p.spread[node.Dead] = by
	if !same && node.Inputs != nil {
		p.find(node.at.of("from"), path+".from", "let the stages before write both with the same key: {stream: NAME, key: [COLUMN]}",
			"the inputs of stage %s are parted by different columns (%s): rows that belong together would stand in different partitions", node.Name, p.spreads(node))
	}
	if node.Window != nil && len(node.Window.By) > 0 && by != nil && !subset(by, node.Window.By) {
		p.findings = append(p.findings, Finding{File: p.spec.File, Pos: node.at.of("window"), Path: path + ".window.by", Level: LevelWarning,
			Message: "windows by " + strings.Join(node.Window.By, ", ") + " of rows that are parted by " + strings.Join(by, ", ") + ": the rows of one window may stand in several partitions",
			Hint:    "add " + strings.Join(by, ", ") + " to by, or let the stage before write {stream: NAME, key: [" + strings.Join(node.Window.By, ", ") + "]}"})
	}
}

// subset says whether all of the columns are among others: rows that agree in those then stand in one partition.
func subset(columns, of []string) bool {
	return !slices.ContainsFunc(columns, func(c string) bool { return !slices.Contains(of, c) })
}

// isKey says why a column cannot be part of a key.
func isKey(schema *arrow.Schema, column string) error {
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	rec := b.NewRecord()
	defer rec.Release()
	_, err := columns.KeyOf(rec, []string{column})
	return err
}

// partedBy is by which columns the rows that a stage reads are parted; nil where its inputs differ.
func (p *planner) partedBy(node *StageNode) (by []string, same bool) {
	for i, stream := range node.From {
		switch of := p.spread[stream]; {
		case i == 0:
			by = of
		case !slices.Equal(by, of):
			return nil, false
		}
	}
	return by, true
}

// spreads says how each input of a stage is parted.
func (p *planner) spreads(node *StageNode) string {
	var all []string
	for _, stream := range node.From {
		by := strings.Join(p.spread[stream], ", ")
		if by == "" {
			by = "several"
		}
		all = append(all, stream+" by "+by)
	}
	return strings.Join(all, "; ")
}
