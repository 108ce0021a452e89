package pipeline

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// Trial is a second version of a stage that is tried beside the first, on the same batches.
//
// A shadow is a node of its own ([Spec.Stages] holds it behind the stage, with ShadowOf set): its own unit, consumer group
// and process, so that it can crash, hang or be slow without touching the first. It writes side streams.
//
// A canary runs in the task of the stage: each home is one version's or the other's, and what the other makes of it goes to
// the side streams.
type Trial struct {
	Kind     string // TrialShadow or TrialCanary
	Use      string // name in the catalogue; that of the stage unless the file says otherwise
	SQL      *Query // what it is, where it is not in the catalogue; that of the stage unless the file says otherwise
	Settings yaml.Node
	State    string  // what it begins with: StateCopy, StateEmpty, or "" for a copy where it understands it
	Percent  float64 // of the homes that are the canary's
	Pos      Pos

	at places
}

// Kinds of a trial: the key in pipeline.yaml, and the ending of the side streams.
const (
	TrialShadow = "shadow"
	TrialCanary = "canary"
)

// What a trial begins with.
const (
	StateCopy  = "copy"
	StateEmpty = "empty"
)

// Side names the stream that a trial of this kind writes where the stage writes stream.
func Side(stream, kind string) string {
	if stream == Drop || stream == "" {
		return stream
	}
	return stream + "." + kind
}

type shadowShape struct {
	Use      name      `yaml:"use" doc:"Name of the second version in the catalogue; that of the stage where it is not said."`
	SQL      *Query    `yaml:"sql" doc:"The second version, where it is a query; that of the stage where neither is said."`
	Settings yaml.Node `yaml:"settings"`
	State    string    `yaml:"state" doc:"What it begins with: copy, what the stage remembers; empty. Where it is not said: a copy if it understands it." enum:"copy,empty"`
	At       places
}

type canaryShape struct {
	Use      name      `yaml:"use" doc:"Name of the second version in the catalogue; that of the stage where it is not said."`
	SQL      *Query    `yaml:"sql" doc:"The second version, where it is a query; that of the stage where neither is said."`
	Settings yaml.Node `yaml:"settings"`
	State    string    `yaml:"state" doc:"What it begins with: copy, what the stage remembers; empty. Where it is not said: a copy if it understands it." enum:"copy,empty"`
	Percent  float64   `yaml:"percent" need:"true" doc:"Of the homes, how many are the second version's: 0 to 100, in steps of 0.01. With 0 it is only compared."`
	At       places
}

// trials reads the keys shadow and canary of a stage.
func (d *decoder) trials(g stageShape, s *Stage) {
	path := "stages." + s.Name
	if g.Shadow != nil {
		sh := *g.Shadow
		s.Trial = &Trial{Kind: TrialShadow, Use: sh.Use.text, SQL: sh.SQL, Settings: sh.Settings, State: sh.State, at: sh.At}
	}
	if g.Canary != nil {
		c := *g.Canary
		if s.Trial != nil {
			d.find(nodeAt(c.At.of("")), path+".canary", "keep one", "a shadow and a canary of one stage")
		}
		s.Trial = &Trial{Kind: TrialCanary, Use: c.Use.text, SQL: c.SQL, Settings: c.Settings, State: c.State, Percent: c.Percent, at: c.At}
		if c.Percent < 0 || c.Percent > 100 || c.Percent != c.Percent {
			d.find(nodeAt(c.At.of("percent")), path+".canary.percent", "want 0 to 100", "%s.canary.percent is %v", path, c.Percent)
		}
	}
	if s.Trial == nil {
		return
	}
	t := s.Trial
	t.Pos = t.at.of("")
	if t.Use == "" && t.SQL == nil {
		t.SQL = s.SQL
	}
	if t.Use == "" {
		t.Use = s.Use
	}
	if t.State != "" && t.State != StateCopy && t.State != StateEmpty {
		d.find(nodeAt(t.at.of("state")), path+"."+t.Kind+".state", "want copy or empty", "state is %q", clip(t.State))
	}
	if t.Kind == TrialShadow && !nodeNames.MatchString(shadowName(s.Name)) {
		d.find(nodeAt(t.Pos), path+".shadow", "give the stage a shorter name", "the shadow would be called %s; %s", shadowName(s.Name), nodeNameRule)
	}
}

func shadowName(stage string) string { return stage + "-" + TrialShadow }

// shadow is the node that a stage's shadow is: the stage, but for what it uses and where it writes.
func (s *Stage) shadow() Stage {
	sh, t := *s, s.Trial
	sh.Name, sh.Use, sh.SQL, sh.Settings, sh.Trial, sh.ShadowOf, sh.Pos = shadowName(s.Name), t.Use, t.SQL, t.Settings, nil, s.Name, t.Pos
	if s.Was != "" {
		sh.Was = shadowName(s.Was)
	}
	sh.ToAny = Side(s.ToAny, t.Kind)
	sh.To = nil
	sh.at = places{}
	for key, at := range s.at {
		if strings.HasPrefix(key, "from") {
			sh.at[key] = at
		}
	}
	for output, stream := range s.To {
		if sh.To == nil {
			sh.To = map[string]string{}
		}
		sh.To[output] = Side(stream, t.Kind)
	}
	for key, at := range t.at {
		sh.at[key] = at
	}
	return sh
}

// path is where a stage stands in pipeline.yaml.
func (s *Stage) path() string {
	if s.ShadowOf != "" {
		return "stages." + s.ShadowOf + "." + TrialShadow
	}
	return "stages." + s.Name
}

// shadowNames finds stages that are called as a shadow is.
func (p *planner) shadowNames() {
	for i := range p.spec.Stages {
		sh := &p.spec.Stages[i]
		for j := range p.spec.Stages {
			if s := &p.spec.Stages[j]; sh.ShadowOf != "" && i != j && s.ID() == sh.ID() {
				p.find(sh.Pos, sh.path(), "rename the other", "the shadow of %s is called %s, and so is another stage (line %d)", sh.ShadowOf, sh.ID(), s.Pos.Line)
			}
		}
	}
}

// sides notes the streams that a second version writes.
func (p *planner) sides(s *Stage) {
	if s.Trial != nil && s.Trial.Kind == TrialCanary {
		for _, output := range append(sortedKeys(s.To), "") {
			stream := s.ToAny
			if output != "" {
				stream = s.To[output]
			}
			if side := Side(stream, TrialCanary); side != "" && side != Drop {
				p.write(s.Name, side, nil, s.Trial.Pos, s.path()+".canary")
				p.plan.Streams[side].Side = true
			}
		}
	}
	if s.ShadowOf == "" {
		return
	}
	for _, st := range p.plan.Streams {
		if st.Writer == s.Name {
			st.Side = true
		}
	}
}

// CanaryNode is the second version that runs in the task of a stage.
type CanaryNode struct {
	New     func() flow.Stage
	Percent float64
	State   string
	Outputs map[string]string // its outputs by name → the stage's streams
}

// canary decodes the second version that runs in the task of a stage.
func (p *planner) canary(node *StageNode) {
	t := node.Trial
	if t == nil || t.Kind != TrialCanary {
		return
	}
	node.Canary = &CanaryNode{Percent: t.Percent, State: t.State}
	node.Canary.New = p.version(&node.Stage, node.path()+".canary", node.Name, t.Use, t.SQL, &t.Settings, t.at)
	if node.Canary.New == nil {
		node.Canary = nil
		return
	}
	windowed := *node
	windowed.New = node.Canary.New
	if _, ok := windowed.New().(flow.InWorkers); ok {
		p.workers(&windowed)
		node.InWorkers = true
	}
	p.window(&windowed)
	node.Canary.New = windowed.New
}

// alone refuses a shadow of a stage that runs together with others: what the others remember cannot be set back to where the
// shadow is when it takes over.
func (p *planner) alone() {
	for _, u := range p.plan.Units {
		for _, s := range u.Stages {
			if s.Trial != nil && s.Trial.Kind == TrialShadow && len(u.Stages) > 1 {
				p.find(s.Trial.Pos, s.path()+".shadow", "write canary: {…, percent: 0}, which runs in the same task, or take the stage out of the group",
					"a shadow of %s, which runs together with others", s.Name)
			}
		}
	}
}

// promotable warns where a second version makes other columns than the first: readers would have to take them when it is
// promoted. Of a canary that is an error, since both write the same stream.
func (p *planner) promotable() {
	for _, node := range p.order {
		t := node.Trial
		if t == nil || node.Outputs == nil {
			continue
		}
		if t.Kind == TrialCanary {
			p.promotableCanary(node)
			continue
		}
		if sh := p.stages[shadowName(node.Name)]; sh != nil && sh.Outputs != nil {
			p.promotableShadow(node)
		}
	}
}

func (p *planner) promotableShadow(node *StageNode) {
	for _, output := range sortedKeys(node.Outputs) {
		first, second := p.plan.Streams[node.Outputs[output]], p.plan.Streams[Side(node.Outputs[output], TrialShadow)]
		if first == nil || second == nil || first.Schema == nil || second.Schema == nil {
			continue // one that nobody wants, or of which enough is said
		}
		if why := difference(first.Schema, second.Schema); why != "" {
			p.warn(node.Trial.at.of("use", ""), node.path()+".shadow", "let it make the same columns, or drop it when you have seen enough",
				"%s cannot be promoted as it is: of the schemas of %s and %s, %s", node.Name, first.Name, second.Name, why)
		}
	}
}

func (p *planner) promotableCanary(node *StageNode) {
	t, path := node.Trial, node.path()+".canary"
	if node.Canary == nil {
		return
	}
	before := len(p.findings)
	second := *node
	second.New, second.SQL, second.Settings, second.Canary, second.at = node.Canary.New, t.SQL, t.Settings, nil, places{"": t.at.of("use", "")}
	found, ok := p.outputs(&second)
	if !ok {
		for i := range p.findings[before:] {
			p.findings[before+i].Path = path
		}
		return
	}
	node.Canary.Outputs = map[string]string{}
	for _, o := range found {
		stream, has := node.Outputs[o.name]
		if node.ToAny != "" && len(found) == 1 {
			stream, has = node.ToAny, true // whatever it is called
		}
		st := p.plan.Streams[stream]
		switch {
		case !has:
			p.find(t.at.of("use", ""), path, "use a shadow", "the canary of %s has an output %s, which the first version has not", node.Name, o.name)
			continue
		case stream == Drop || st == nil || st.Schema == nil:
		case !st.Schema.HasField(flow.ColHome):
			p.find(t.at.of("use", ""), path, "use a shadow", "rows of %s have no column home: nobody knows which of them are the canary's", stream)
		default:
			if why := difference(st.Schema, o.schema); why != "" {
				p.find(t.at.of("use", ""), path, "let it make the same columns, or use a shadow", "the canary of %s cannot write %s: of the two schemas, %s", node.Name, stream, why)
			}
			if side := p.plan.Streams[Side(stream, TrialCanary)]; side != nil && side.Writer == node.Name {
				side.Schema = st.Schema
			}
		}
		node.Canary.Outputs[o.name] = stream
	}
	for _, output := range sortedKeys(node.Outputs) {
		if stream := node.Outputs[output]; !slices.Contains(slices.Collect(maps.Values(node.Canary.Outputs)), stream) && stream != Drop && len(p.findings) == before {
			p.find(t.at.of("use", ""), path, "use a shadow", "the canary of %s has no output %s", node.Name, output)
		}
	}
}

func (p *planner) warn(at Pos, path, hint, format string, args ...any) {
	p.findings = append(p.findings, Finding{File: p.spec.File, Pos: at, Path: path, Level: LevelWarning, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// IsCanary says whether a home is one of the percent of homes that are a canary's. The same homes stay in it while percent
// grows; those of another stage are others.
func IsCanary(stage, home string, percent float64) bool {
	h := fnv.New64a()
	_, _ = h.Write([]byte(stage))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(home))
	// FNV's lower bits follow the last byte: the finalizer of MurmurHash3 mixes them.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return float64(x%10_000) < percent*100
}
