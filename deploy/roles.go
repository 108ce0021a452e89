package deploy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"hearthline/pipeline"
)

// File is a rendered file.
type File struct {
	Name string // within the folder that is rendered
	Data []byte
}

// Where things are in a container.
const (
	configDir = "/etc/hearthline/pipeline" // of its own: a runtime cannot make mount points within a ConfigMap
	dataDir   = "/var/lib/hearthline"
	binary    = "/hearthline"
	opsPort   = 9600
	userID    = 65532
)

// role is one container of the plan: the gateway, a source, a unit of stages, or a sink.
type role struct {
	kind    string // gateway, source, stage or sink
	node    string // as the binary knows it: a unit's name is its stages' joined by +
	name    string // as a cluster knows it: gateway, source-partner, stage-score
	reads   []string
	group   string           // in which it reads them
	source  *pipeline.Source // of a source
	ports   []port           // of the gateway: its doors
	peers   *port            // of the gateway: where others of its kind reach it; nil for one that is alone
	workers bool             // some of its stages run in processes of their own: it needs the image with Python
	run     Node             // how it runs
	members []string         // names under which it may stand in deploy.nodes
}

// keeps says whether a role keeps files. Gateways and sources have all they know in Kafka.
func (r *role) keeps() bool { return r.kind == "stage" || r.kind == "sink" }

type port struct {
	name   string
	number int32
}

// args is the command line of the role.
func (r *role) args() []string {
	if r.kind == "gateway" {
		return []string{"gateway"}
	}
	return []string{r.kind, r.node}
}

// renderer gathers what is needed, and what is wrong.
type renderer struct {
	plan     *pipeline.Plan
	settings *Settings
	target   string // kubernetes or compose
	roles    []*role
	env      map[string]Value // for all roles
	findings []pipeline.Finding
}

func newRenderer(plan *pipeline.Plan, s *Settings, target string) *renderer {
	r := &renderer{plan: plan, settings: s, target: target}
	r.listRoles()
	r.applyNodes()
	r.variables()
	r.kafkaSecrets()
	r.sourceSecrets()
	r.gatewayPorts()
	r.gatewayPeers()
	r.gatewayGrace()
	r.checkScale()
	return r
}

func (r *renderer) find(at pipeline.Pos, path, hint, format string, args ...any) {
	if at.Line == 0 {
		at = pipeline.Pos{Line: 1, Column: 1}
	}
	r.findings = append(r.findings, pipeline.Finding{File: r.plan.Spec.File, Pos: at, Path: path, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// err is what was found, in the order of the file; nil when nothing was.
func (r *renderer) err() error {
	if len(r.findings) == 0 {
		return nil
	}
	slices.SortStableFunc(r.findings, func(a, b pipeline.Finding) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return Findings(r.findings)
}

func (r *renderer) listRoles() {
	r.roles = append(r.roles, &role{kind: "gateway", node: "gateway", name: "gateway", members: []string{"gateway"}})
	for i := range r.plan.Spec.Sources {
		s := &r.plan.Spec.Sources[i]
		r.roles = append(r.roles, &role{kind: "source", node: s.Name, name: objectOf("source-", s.Name), reads: []string{s.Topic}, group: s.Group, source: s, members: []string{s.Name}})
	}
	for _, u := range r.plan.Units {
		one := &role{kind: "stage", node: u.Name, reads: u.Inputs, group: r.plan.Group(u.Name)}
		for _, s := range u.Stages {
			one.members = append(one.members, s.Name)
			one.workers = one.workers || s.InWorkers
		}
		one.name = objectOf("stage-", u.Name)
		r.roles = append(r.roles, one)
	}
	for _, s := range r.plan.Sinks {
		r.roles = append(r.roles, &role{kind: "sink", node: s.Name, name: objectOf("sink-", s.Name), reads: s.Streams, group: r.plan.Group(s.Name), members: []string{s.Name}})
	}
	seen := map[string]bool{}
	for _, one := range r.roles {
		if seen[one.name] { // stages a+b and a-b
			one.name += "-" + hash([]byte(one.node))[:6]
		}
		seen[one.name] = true
	}
}

// objectOf is the name of a node as an object of Kubernetes: short enough that what is made from it has room in 63.
func objectOf(prefix, node string) string {
	name := prefix + strings.ReplaceAll(node, "+", "-")
	if len(name) > 44 {
		name = strings.TrimRight(name[:37], "-") + "-" + hash([]byte(node))[:6]
	}
	return name
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// applyNodes gives every role its settings.
func (r *renderer) applyNodes() {
	owner := map[string]*role{}
	var known []string
	for _, one := range r.roles {
		one.run = Node{}.over(r.settings.Defaults)
		for _, m := range one.members {
			owner[m] = one
			known = append(known, m)
		}
	}
	said := map[*role]string{}
	for _, name := range sortedKeys(r.settings.Nodes) {
		at := r.at("deploy", "nodes", name)
		one := owner[name]
		switch {
		case one == nil:
			r.find(at, "deploy.nodes."+name, "known: "+strings.Join(known, ", "), "there is no node %q", name)
			continue
		case said[one] != "":
			r.find(at, "deploy.nodes."+name, "say it of one of them", "%s runs together with %s", name, said[one])
			continue
		}
		said[one] = name
		one.run = r.settings.Nodes[name].over(r.settings.Defaults)
	}
}

// at is where a key of the file stands.
func (r *renderer) at(path ...string) pipeline.Pos {
	if path[0] != "deploy" {
		return pipeline.Pos{}
	}
	n, at := &r.plan.Spec.Deploy, pipeline.Pos{Line: r.plan.Spec.Deploy.Line, Column: r.plan.Spec.Deploy.Column}
	for _, key := range path[1:] {
		next := (*yaml.Node)(nil)
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				at, next = pipeline.Pos{Line: n.Content[i].Line, Column: n.Content[i].Column}, n.Content[i+1]
			}
		}
		if next == nil {
			return at
		}
		n = next
	}
	return at
}

// draining is a gateway that says how long it may take to send its clients away, and to end.
type draining interface{ DrainMax() time.Duration }

// gatewayGrace sees to it that nobody kills a gateway that still sends clients away.
func (r *renderer) gatewayGrace() {
	if g, ok := r.plan.Gateway.(draining); ok {
		r.roles[0].run.Grace = max(r.roles[0].run.Grace, g.DrainMax().Truncate(time.Second)+graceSpare)
	}
}

// graceSpare is what a process takes to end beside its drain.
const graceSpare = 10 * time.Second

// gatewayPorts finds where the gateway listens.
func (r *renderer) gatewayPorts() {
	g := r.plan.Spec.Gateway
	for i := 0; i+1 < len(g.Settings.Content); i += 2 {
		key, value := g.Settings.Content[i], g.Settings.Content[i+1]
		path := "gateway.settings." + key.Value
		text := r.valueThere(path, value.Value)
		host, number, ok := hostPort(text)
		if !ok || value.Kind != yaml.ScalarNode {
			continue
		}
		if loopback(host) {
			r.find(pipeline.Pos{Line: value.Line, Column: value.Column}, path, fmt.Sprintf("write ${HEARTHLINE_%s:-%s}", strings.ToUpper(key.Value), text),
				"%s is %s, which nobody outside the container reaches", path, text)
			continue
		}
		name := strings.ReplaceAll(key.Value, "_", "-")
		r.roles[0].ports = append(r.roles[0].ports, port{name[:min(len(name), 15)], number})
	}
	if len(r.roles[0].ports) == 0 && len(r.findings) == 0 {
		r.find(g.Pos, "gateway.settings", "write mqtt: ${HEARTHLINE_MQTT:-127.0.0.1:8883}", "gateway.settings names no address to listen on")
	}
}

func hostPort(s string) (host string, number int32, ok bool) {
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, false
	}
	n, err := strconv.ParseUint(p, 10, 16)
	return host, int32(n), err == nil && n > 0
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// checkScale holds replicas to the partitions: a partition is one task, so more replicas than that idle.
func (r *renderer) checkScale() {
	for _, one := range r.roles {
		if one.kind == "source" {
			continue // how many partitions the topic has, its own cluster knows
		}
		if one.kind == "gateway" {
			if a := one.run.Autoscale; a != nil && a.With == "keda" {
				r.find(r.at("deploy", "nodes", "gateway", "autoscale"), "deploy.nodes.gateway.autoscale", "write with: hpa", "the gateway reads no stream that it could lag behind")
			}
			continue
		}
		most := one.run.Replicas
		if a := one.run.Autoscale; a != nil {
			most = a.Max
		}
		if int(most) > r.plan.Spec.Partitions {
			said := one.members[0]
			for _, m := range one.members {
				if _, ok := r.settings.Nodes[m]; ok {
					said = m
				}
			}
			r.find(r.at("deploy", "nodes", said), "deploy.nodes."+said, "ask for fewer, or raise partitions before there is data",
				"%s may have %d replicas, but streams have %d partitions: the rest would idle", one.node, most, r.plan.Spec.Partitions)
		}
	}
}
