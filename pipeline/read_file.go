package pipeline

import (
	"fmt"
	"net"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/flow/window"
	"hearthline/streams"
)

// The shapes below are pipeline.yaml as it is written; [Spec] is what it means. Their doc tags become the
// descriptions of the JSON Schema.

type fileShape struct {
	Pipeline   string               `yaml:"pipeline" need:"true" doc:"Name of the pipeline: lower case letters, digits and -. Its Kafka consumer groups start with it."`
	Partitions int                  `yaml:"partitions" doc:"Partitions of every stream. A home's rows stay in one, in order. The most tasks that can share a stage's work."`
	Kafka      kafkaShape           `yaml:"kafka" doc:"Where the streams are."`
	Gateway    gatewayShape         `yaml:"gateway" need:"true" doc:"The connection tier: where data comes in."`
	Sources    entries[sourceShape] `yaml:"sources" doc:"Kafka topics that others write, by name: their messages become rows of the gateway's stream."`
	Stages     entries[stageShape]  `yaml:"stages" doc:"The stages, by name, in the order of the data."`
	Together   []names              `yaml:"together" doc:"Groups of stages that run in one task each, with no Kafka between them."`
	Sinks      entries[sinkShape]   `yaml:"sinks" doc:"The sinks, by name."`
	Checkpoint checkpointShape      `yaml:"checkpoint" doc:"How often a task writes its state, 100ms to 1h: what came after the last checkpoint is read again after a crash. Or a mapping that says where, too."`
	Durability string               `yaml:"durability" doc:"What an acknowledgement outlives: process, the death of any process; power, a power cut of the machine too. It is the embedded broker that waits for the disk then; a cluster of brokers is durable by its replicas." enum:"process,power"`
	Console    consoleShape         `yaml:"console" doc:"The web page, its API and /metrics."`
	Deploy     yaml.Node            `yaml:"deploy" doc:"What render needs to know: image, replicas and resources, by node."`
}

type kafkaShape struct {
	Brokers     names         `yaml:"brokers" doc:"host:port of the brokers, as a list or separated by commas; embedded for the broker that up starts."`
	Listen      string        `yaml:"listen" doc:"Address of the embedded broker."`
	Compression string        `yaml:"compression" doc:"How batches are compressed." enum:"none,lz4,zstd"`
	Retention   time.Duration `yaml:"retention" doc:"How long streams keep their rows, 1m to 3650d."`
	Replication int           `yaml:"replication" doc:"Copies of the streams that are made, 1 to 9; from 3 on two must have a row before it is acknowledged. Unset: what the brokers do."`
	Session     time.Duration `yaml:"session_timeout" doc:"How long a process may be silent before its partitions go to others, 1s to 30m; within the broker's group.min.session.timeout.ms and group.max.session.timeout.ms."`
	Request     time.Duration `yaml:"request_timeout" doc:"How long Kafka may take to answer before a connection is given up and the request is sent again, 1s to 5m."`
	TLS         *streams.TLS  `yaml:"tls" doc:"Encrypt the connections to the brokers; {} trusts the authorities of the system. The embedded broker needs none, and gets none."`
	SASL        *streams.SASL `yaml:"sasl" doc:"Log in to the brokers; the embedded broker asks for none."`
	At          places
}

// checkpointShape is a duration, or a mapping.
type checkpointShape struct {
	Every time.Duration `yaml:"every" doc:"How often a task writes its state, 100ms to 1h."`
	To    string        `yaml:"to" doc:"Where state is kept: a folder, or s3://bucket/prefix; without it checkpoints/ in the data folder. Where roles run on several machines, all must reach it."`
	S3    blobs.S3      `yaml:"s3" doc:"How the server of a bucket is reached."`
	At    places
}

// checkpointFields is what decodes the mapping: a type without decodeNode.
type checkpointFields checkpointShape

func (c *checkpointShape) decodeNode(d *decoder, n *yaml.Node, path string) {
	if n.Kind == yaml.MappingNode {
		d.value(n, reflect.ValueOf((*checkpointFields)(c)).Elem(), path, field{})
		return
	}
	d.into(n, &c.Every, path)
	c.At = places{"": {max(1, n.Line), max(1, n.Column)}}
}

type gatewayShape struct {
	To       name      `yaml:"to" need:"true" doc:"The stream that it writes."`
	Commands name      `yaml:"commands" doc:"The stream that it writes the steps of commands to, for sinks to keep; nowhere where it is not said."`
	Settings yaml.Node `yaml:"settings"`
	At       places
}

type sourceShape struct {
	Topic   string        `yaml:"topic" need:"true" doc:"The topic."`
	Brokers names         `yaml:"brokers" doc:"host:port of the brokers, as a list or separated by commas; the pipeline's own where it is not said."`
	TLS     *streams.TLS  `yaml:"tls" doc:"Encrypt the connections to those brokers; {} trusts the authorities of the system."`
	SASL    *streams.SASL `yaml:"sasl" doc:"Log in to those brokers."`
	Group   string        `yaml:"group" doc:"Consumer group; PIPELINE.source.NAME where it is not said."`
	Begin   string        `yaml:"begin" doc:"Where a group begins that has committed nothing: first, with the oldest message, or last, with what comes from now on." enum:"first,last"`
	Format  string        `yaml:"format" doc:"How messages are written that have no content-type header." enum:"json,lines,senml,arrow"`
	Home    string        `yaml:"home" doc:"Where the home stands: row, in each row; key, the message's key; header:NAME, a header of it."`
	Device  string        `yaml:"device" doc:"Where the device stands, likewise."`
	Linger  time.Duration `yaml:"linger" doc:"How long the first message of a batch waits for others, 1ms to 1m."`
	At      places
}

// decodeNode gives the defaults, which a mapping by name has no place for.
func (s *sourceShape) decodeNode(d *decoder, n *yaml.Node, path string) {
	s.Begin, s.Format, s.Home, s.Device, s.Linger = "first", "json", "row", "row", 100*time.Millisecond
	d.value(n, reflect.ValueOf((*sourceFields)(s)).Elem(), path, field{})
}

// sourceFields is what decodes the mapping: a type without decodeNode.
type sourceFields sourceShape

type consoleShape struct {
	Listen    string `yaml:"listen" doc:"Address of the web page, host:port. Where others than this machine reach it, it needs a token."`
	TokenEnv  string `yaml:"token_env" doc:"Name of the environment variable that holds the token which the page, its API and /metrics ask for; empty for none."`
	TokenFile string `yaml:"token_file" doc:"File that holds the token, readable for its owner only."`
	Insecure  bool   `yaml:"insecure" doc:"Answer everybody, wherever it listens, because something in front asks who comes."`
	At        places
}

type stageShape struct {
	Use      name           `yaml:"use" doc:"Name of the stage in the catalogue, where it is not the name of this node."`
	SQL      *Query         `yaml:"sql" doc:"What the stage is, instead of one of the catalogue: a query over each batch, which is called input or as its stream; settings are its parameters ($name)."`
	Was      name           `yaml:"was" doc:"The name that this node had before it was renamed: its consumer group, state, lineage and dead letters go on under it."`
	From     inputs         `yaml:"from" need:"true" doc:"The stream that it reads, or a list of them; of a stage that tells its inputs apart, a stream for each by the input's name."`
	To       outputs        `yaml:"to" need:"true" doc:"The stream that it writes; of a stage with several outputs, a stream for each by the output's name, _ for one that nobody wants."`
	Settings yaml.Node      `yaml:"settings"`
	Window   *window.Config `yaml:"window" doc:"Gather its rows in windows of event time, and give it all rows of those that closed."`
	Workers  *flow.Workers  `yaml:"workers" doc:"How the processes are run of a stage that has some, such as one in Python."`
	Parallel int            `yaml:"parallel" doc:"How many instances work at once in a task, for stages without state; 0 is one a core."`
	Shadow   *shadowShape   `yaml:"shadow" doc:"A second version that gets the same batches, as a node of its own; what it makes goes to side streams, STREAM.shadow, to be compared."`
	Canary   *canaryShape   `yaml:"canary" doc:"A second version in the same task, whose output is the one that counts for some of the homes; what does not count goes to side streams, STREAM.canary."`
	At       places
}

type sinkShape struct {
	Use      name       `yaml:"use" doc:"Name of the sink in the catalogue, where it is not the name of this node."`
	Was      name       `yaml:"was" doc:"The name that this node had before it was renamed: its consumer group and dead letters go on under it."`
	From     names      `yaml:"from" need:"true" doc:"The stream that it keeps, or a list of them; patterns such as \"*.dead\" too."`
	Settings yaml.Node  `yaml:"settings"`
	Flush    flushShape `yaml:"flush" doc:"When a range of rows is written; the sink's own wish where it is not said."`
	At       places
}

type flushShape struct {
	Rows int64         `yaml:"rows" doc:"After this many rows."`
	Wait time.Duration `yaml:"wait" doc:"When its first row has waited this long, 10ms to 1h."`
	At   places
}

// entries is a mapping by name whose order counts.
type entries[T any] []entry[T]

type entry[T any] struct {
	Name  string
	Pos   Pos
	Value T
}

func (e *entries[T]) decodeNode(d *decoder, n *yaml.Node, path string) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.want(n, path, "", "a mapping by name")
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		one := entry[T]{Name: key.Value, Pos: Pos{key.Line, key.Column}}
		d.nodeName(key, join(path, key.Value))
		d.under(key, value)
		d.into(value, &one.Value, join(path, key.Value))
		*e = append(*e, one)
	}
}

// name is a text and its place.
type name struct {
	text string
	pos  Pos
}

func (m *name) decodeNode(d *decoder, n *yaml.Node, path string) {
	m.pos = Pos{n.Line, n.Column}
	d.into(n, &m.text, path)
}

// names is a text or a list of texts.
type names []name

func (ns *names) decodeNode(d *decoder, n *yaml.Node, path string) {
	*ns = names{}
	if n.Kind == yaml.SequenceNode {
		for i, c := range n.Content {
			var one name
			one.decodeNode(d, c, fmt.Sprintf("%s[%d]", path, i))
			*ns = append(*ns, one)
		}
		if len(*ns) == 0 {
			d.find(n, path, "", "%s is empty", path)
		}
		return
	}
	var one name
	one.decodeNode(d, n, path)
	*ns = append(*ns, one)
}

// outputs is a stream, or streams by the name of the output.
type outputs struct {
	any   keyed
	named []entry[keyed]
}

func (o *outputs) decodeNode(d *decoder, n *yaml.Node, path string) {
	switch {
	case n.Kind == yaml.SequenceNode:
		d.want(n, path, "write {OUTPUT: STREAM, …}", "a stream, or streams by the name of the output")
	case n.Kind != yaml.MappingNode || isKeyed(n):
		o.any.decodeNode(d, n, path)
	case len(n.Content) == 0:
		d.find(n, path, "write {OUTPUT: STREAM, …}", "%s is empty", path)
	default:
		for i := 0; i+1 < len(n.Content); i += 2 {
			one := entry[keyed]{Name: n.Content[i].Value, Pos: Pos{n.Content[i].Line, n.Content[i].Column}}
			one.Value.decodeNode(d, n.Content[i+1], join(path, one.Name))
			o.named = append(o.named, one)
		}
	}
}

var (
	nodeNames   = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$`)
	streamNames = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,248}$`)
)

const (
	nodeNameRule   = "names are 1 to 40 lower case letters, digits and -, and start with a letter"
	streamNameRule = "streams are named by 1 to 249 lower case letters, digits, dots, - and _"
	reservedPrefix = "hearthline."
	deadSuffix     = ".dead"
	gatewayNode    = "gateway"
)

// nodeName checks the name of a stage or sink.
func (d *decoder) nodeName(n *yaml.Node, path string) {
	switch {
	case !nodeNames.MatchString(n.Value):
		d.find(n, path, nodeNameRule, "%q cannot be the name of a node", clip(n.Value))
	case n.Value == gatewayNode:
		d.find(n, path, "take another name", "%q is the name of the gateway", n.Value)
	}
}

// streamName checks a stream that is read (pattern says whether "*.dead" is one) or written.
func (d *decoder) streamName(m name, path string, written, pattern bool) {
	at := &yaml.Node{Line: m.pos.Line, Column: m.pos.Column}
	text := m.text
	if pattern {
		text = strings.ReplaceAll(text, "*", "x")
	}
	switch {
	case strings.Contains(text, "*"):
		d.find(at, path, "name the streams; sinks alone take patterns", "a pattern (%q)", clip(m.text))
	case !streamNames.MatchString(text):
		d.find(at, path, streamNameRule, "%q cannot be the name of a stream", clip(m.text))
	case strings.HasPrefix(text, reservedPrefix):
		d.find(at, path, "take another name", "streams that start with %q belong to Hearthline itself", reservedPrefix)
	case written && strings.HasSuffix(text, deadSuffix):
		d.find(at, path, "take another name", "streams that end with %q are dead letters, which the runtime writes", deadSuffix)
	}
}

// defaultShape is a file that says nothing.
func defaultShape() fileShape {
	return fileShape{
		Partitions: 4,
		Kafka:      kafkaShape{Listen: "127.0.0.1:9092", Compression: "lz4", Retention: 7 * 24 * time.Hour, Session: 10 * time.Second, Request: 10 * time.Second},
		Checkpoint: checkpointShape{Every: 10 * time.Second},
		Durability: DurabilityProcess,
		Console:    consoleShape{Listen: "127.0.0.1:8080"},
	}
}

// spec reads the whole file into s.
func (d *decoder) spec(root *yaml.Node, s *Spec) {
	shape := defaultShape()
	d.into(root, &shape, "")
	at := func(key string) *yaml.Node {
		for i := 0; i+1 < len(root.Content); i += 2 {
			if root.Content[i].Value == key {
				return root.Content[i+1]
			}
		}
		return root
	}
	s.Name, s.Partitions, s.Deploy = shape.Pipeline, shape.Partitions, shape.Deploy
	if s.Name != "" && !nodeNames.MatchString(s.Name) {
		d.find(at("pipeline"), "pipeline", nodeNameRule, "%q cannot be the name of a pipeline", clip(s.Name))
	}
	d.between(at("partitions"), "partitions", int64(s.Partitions), 1, 10_000)
	d.checkpoint(shape.Checkpoint, s)
	if s.Durability = shape.Durability; s.Durability != DurabilityProcess && s.Durability != DurabilityPower {
		d.find(at("durability"), "durability", didYouMean(s.Durability, []string{DurabilityProcess, DurabilityPower}), "durability is %q; want process or power", clip(s.Durability))
	}
	d.kafka(shape.Kafka, s)
	d.console(shape.Console, s)

	before := len(d.findings)
	d.gateway(shape.Gateway, s)
	for _, e := range shape.Sources {
		s.Sources = append(s.Sources, d.source(e, s))
	}
	for _, e := range shape.Stages {
		stage := d.stage(e)
		s.Stages = append(s.Stages, stage)
		if stage.Trial != nil && stage.Trial.Kind == TrialShadow {
			s.Stages = append(s.Stages, stage.shadow())
		}
	}
	for _, e := range shape.Sinks {
		s.Sinks = append(s.Sinks, d.sink(e, s))
	}
	d.together(shape.Together, s)
	s.broken = len(d.findings) > before || slices.ContainsFunc(d.findings, func(f Finding) bool {
		for _, key := range []string{"gateway", "sources", "stages", "sinks", "together"} {
			if !strings.Contains(f.Path, ".settings") && (f.Path == key || strings.HasPrefix(f.Path, key+".") || strings.HasPrefix(f.Path, key+"[")) {
				return true
			}
		}
		return f.Path == "" // a key of the top that is unknown or missing
	})
}

// into decodes n into a pointer of this package's own.
func (d *decoder) into(n *yaml.Node, to any, path string) {
	d.value(n, valueOf(to), path, field{})
}

// console sees to it that what others reach asks who they are.
func (d *decoder) console(c consoleShape, s *Spec) {
	s.Console = Console{Listen: c.Listen, TokenEnv: c.TokenEnv, TokenFile: c.TokenFile, Insecure: c.Insecure, Pos: c.At[""]}
	at := c.At.of("listen")
	d.address(at, "console.listen", c.Listen)
	switch {
	case c.TokenEnv != "" && c.TokenFile != "":
		d.find(nodeAt(c.At.of("token_file")), "console.token_file", "keep one", "console.token_env and console.token_file are both set")
	case c.TokenEnv != "" && !envName.MatchString(c.TokenEnv):
		d.find(nodeAt(c.At.of("token_env")), "console.token_env", "write the name, such as HEARTHLINE_CONSOLE_TOKEN; the token stands in the environment",
			"console.token_env is no name of an environment variable")
	case !Loopback(c.Listen) && strings.Contains(c.Listen, ":") && c.TokenEnv == "" && c.TokenFile == "" && !c.Insecure:
		d.find(nodeAt(at), "console.listen", "add token_env: HEARTHLINE_CONSOLE_TOKEN, or listen on 127.0.0.1, or say insecure: true where something in front asks who comes",
			"others than this machine reach console.listen, and it asks for no token")
	}
}

// Loopback says whether only this machine reaches an address, host:port. Of names it knows localhost.
func Loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

func (d *decoder) checkpoint(c checkpointShape, s *Spec) {
	s.Checkpoint, s.CheckpointStore = c.Every, CheckpointStore{To: c.To, S3: c.S3, Pos: c.At.of("to")}
	path := "checkpoint"
	if _, ok := c.At["every"]; ok {
		path += ".every"
	}
	d.betweenTimes(nodeAt(c.At.of("every")), path, c.Every, 100*time.Millisecond, time.Hour)
	if c.To == "" {
		return
	}
	if err := blobs.Check(c.To); err != nil {
		d.find(nodeAt(c.At.of("to")), "checkpoint.to", "", "%s", plainError(err))
	} else if _, ok := c.At["s3"]; ok && !blobs.IsShared(c.To) && c.S3 != (blobs.S3{}) {
		d.find(nodeAt(c.At.of("to")), "checkpoint.to", "write s3://bucket/prefix, or leave s3 out", "s3 is set, but %q is a folder", clip(c.To))
	}
}

func (d *decoder) kafka(k kafkaShape, s *Spec) {
	s.Kafka = Kafka{Listen: k.Listen, Compression: k.Compression, Retention: k.Retention, SessionTimeout: k.Session, RequestTimeout: k.Request,
		Replication: k.Replication, TLS: k.TLS, SASL: k.SASL, Pos: k.At[""], at: k.At}
	for _, m := range k.Brokers {
		for broker := range strings.SplitSeq(m.text, ",") {
			if broker = strings.TrimSpace(broker); m.text == "" {
				continue // said already, or an empty variable: none
			} else if broker != "embedded" {
				d.address(m.pos, "kafka.brokers", broker)
				s.Kafka.Brokers = append(s.Kafka.Brokers, broker)
			} else if len(k.Brokers) > 1 || strings.Contains(m.text, ",") {
				d.findings = append(d.findings, Finding{File: d.file, Pos: m.pos, Path: "kafka.brokers", Message: "embedded beside other brokers", Hint: "write embedded alone, or brokers alone"})
			}
		}
	}
	d.address(k.At.of("listen"), "kafka.listen", k.Listen)
	if _, _, err := net.SplitHostPort(k.Listen); err == nil && !Loopback(k.Listen) {
		d.find(nodeAt(k.At.of("listen")), "kafka.listen", "listen on 127.0.0.1; for other machines run Kafka, and name it in kafka.brokers",
			"the embedded broker asks nobody who they are, and others than this machine reach kafka.listen")
	}
	compressions := []string{"none", "lz4", "zstd"}
	if !slices.Contains(compressions, k.Compression) {
		d.findings = append(d.findings, Finding{File: d.file, Pos: k.At.of("compression"), Path: "kafka.compression",
			Message: fmt.Sprintf("unknown compression %q", clip(k.Compression)), Hint: didYouMean(k.Compression, compressions)})
	}
	d.between(nodeAt(k.At.of("replication")), "kafka.replication", int64(k.Replication), 0, 9)
	d.betweenTimes(nodeAt(k.At.of("retention")), "kafka.retention", k.Retention, time.Minute, 3650*24*time.Hour)
	d.betweenTimes(nodeAt(k.At.of("session_timeout")), "kafka.session_timeout", k.Session, time.Second, 30*time.Minute)
	d.betweenTimes(nodeAt(k.At.of("request_timeout")), "kafka.request_timeout", k.Request, time.Second, 5*time.Minute)
}

func (d *decoder) gateway(g gatewayShape, s *Spec) {
	s.Gateway = Gateway{To: g.To.text, Commands: g.Commands.text, Settings: g.Settings, Pos: g.At[""], at: g.At}
	if g.To.text != "" {
		d.streamName(g.To, "gateway.to", true, false)
	}
	if g.Commands.text != "" {
		d.streamName(g.Commands, "gateway.commands", true, false)
	}
}

func (d *decoder) stage(e entry[stageShape]) Stage {
	g, path := e.Value, "stages."+e.Name
	s := Stage{Name: e.Name, Use: e.Name, ToAny: g.To.any.stream.text, Settings: g.Settings, Window: g.Window, Workers: g.Workers, Parallel: g.Parallel, Pos: e.Pos, at: g.At}
	if s.at == nil {
		s.at = places{}
	}
	s.at[""] = e.Pos
	if g.Use.text != "" {
		s.Use = g.Use.text
	}
	s.SQL = g.SQL
	s.Was = d.was(g.Was, path)
	d.between(nodeAt(s.at.of("parallel")), path+".parallel", int64(g.Parallel), 0, 1024)
	d.inputs(g.From, path, &s)
	if s.ToAny != "" {
		d.streamName(g.To.any.stream, path+".to", true, false)
		d.key(g.To.any, path+".to", &s)
	}
	for _, o := range g.To.named {
		if s.To == nil {
			s.To = map[string]string{}
		}
		to := o.Value.stream
		s.To[o.Name] = to.text
		s.at["to/"+o.Name] = o.Pos
		s.at["to="+to.text] = to.pos
		if to.text != Drop {
			d.streamName(to, path+".to."+o.Name, true, false)
		}
		d.key(o.Value, path+".to."+o.Name, &s)
	}
	d.trials(g, &s)
	return s
}

// was checks the name that a node had before.
func (d *decoder) was(m name, path string) string {
	if m.text != "" {
		d.nodeName(&yaml.Node{Value: m.text, Line: m.pos.Line, Column: m.pos.Column}, path+".was")
	}
	return m.text
}

func (d *decoder) from(from names, path string, at places, patterns bool) []string {
	var streams []string
	for _, m := range from {
		if m.text == "" {
			continue
		}
		d.streamName(m, path+".from", false, patterns)
		if slices.Contains(streams, m.text) {
			d.find(nodeAt(m.pos), path+".from", "remove one", "%s stands here twice", m.text)
			continue
		}
		streams = append(streams, m.text)
		at["from/"+m.text] = m.pos
	}
	return streams
}

func (d *decoder) sink(e entry[sinkShape], spec *Spec) Sink {
	g, path := e.Value, "sinks."+e.Name
	s := Sink{Name: e.Name, Use: e.Name, Settings: g.Settings, FlushRows: g.Flush.Rows, FlushWait: g.Flush.Wait, Pos: e.Pos, at: g.At}
	if s.at == nil {
		s.at = places{}
	}
	s.at[""] = e.Pos
	if g.Use.text != "" {
		s.Use = g.Use.text
	}
	s.Was = d.was(g.Was, path)
	s.From = d.from(g.From, path, s.at, true)
	if _, ok := g.Flush.At["rows"]; ok {
		d.between(nodeAt(g.Flush.At["rows"]), path+".flush.rows", g.Flush.Rows, 1, 100_000_000)
	}
	if _, ok := g.Flush.At["wait"]; ok {
		d.betweenTimes(nodeAt(g.Flush.At["wait"]), path+".flush.wait", g.Flush.Wait, 10*time.Millisecond, time.Hour)
	}
	for _, other := range spec.Stages {
		if other.Name == s.Name {
			d.find(nodeAt(e.Pos), path, "take another name", "a stage is called %s too (line %d)", s.Name, other.Pos.Line)
		}
	}
	return s
}

func (d *decoder) together(groups []names, s *Spec) {
	for _, group := range groups {
		var stages []string
		at := places{}
		for i, m := range group {
			if i == 0 {
				at[""] = m.pos
			}
			if m.text != "" {
				stages = append(stages, m.text)
				at[m.text] = m.pos // of one that stands twice, the second
			}
		}
		if len(stages) > 0 {
			s.Together, s.togetherAt = append(s.Together, stages), append(s.togetherAt, at)
		}
	}
}

func nodeAt(p Pos) *yaml.Node { return &yaml.Node{Line: p.Line, Column: p.Column} }

func (d *decoder) between(n *yaml.Node, path string, x, least, most int64) {
	if x < least || x > most {
		d.find(n, path, fmt.Sprintf("want %d to %d", least, most), "%s is %d", path, x)
	}
}

func (d *decoder) betweenTimes(n *yaml.Node, path string, x, least, most time.Duration) {
	if x < least || x > most {
		d.find(n, path, fmt.Sprintf("want %s to %s", shortTime(least), shortTime(most)), "%s is %s", path, shortTime(x))
	}
}

// shortTime writes 5m, not 5m0s.
func shortTime(t time.Duration) string {
	if day := 24 * time.Hour; t >= day && t%day == 0 {
		return strconv.Itoa(int(t/day)) + "d"
	}
	s := t.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// address checks host:port. The host may be empty (all interfaces); port 0 is any free one.
func (d *decoder) address(at Pos, path, address string) {
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		d.find(nodeAt(at), path, "write host:port, such as 127.0.0.1:8080", "%s is no address", path)
	}
}
