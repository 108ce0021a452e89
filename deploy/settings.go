// Package deploy renders what runs a pipeline elsewhere, from the same pipeline.yaml that runs it here: manifests for
// Kubernetes and a file for Docker Compose, one container a role. It reads the plan and the file's section deploy, talks
// to nothing, and gives the same bytes for the same input. Secrets are named, never held.
package deploy

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"hearthline/pipeline"
)

// Settings is the section deploy of pipeline.yaml.
type Settings struct {
	Image     string           `yaml:"image"`        // repository:tag, or better repository@digest
	Stages    string           `yaml:"stages_image"` // likewise, that of roles whose stages are in Python or SQL: what hearthline render image describes
	Namespace string           `yaml:"namespace"`    // of Kubernetes; "" is that of whoever applies the manifests
	Env       map[string]Value `yaml:"env"`          // what the variables of pipeline.yaml are there
	Data      Data             `yaml:"data"`         // where checkpoints and files are kept
	Network   Network          `yaml:"network"`      // what may talk to what
	Monitor   bool             `yaml:"monitoring"`   // render what the Prometheus operator scrapes and alerts by, and a dashboard for Grafana
	Defaults  Node             `yaml:"defaults"`     // of every node
	Nodes     map[string]Node  `yaml:"nodes"`        // by the name of a stage or sink, or gateway; over the defaults
}

// Value is what a variable holds: a text, or where the text is.
type Value struct {
	Text   string
	Secret string // name of a Secret
	Config string // name of a ConfigMap
	Key    string // in it
}

// UnmarshalYAML reads a text, or {secret: NAME, key: KEY}, or {config: NAME, key: KEY}.
func (v *Value) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		v.Text = n.Value
		return nil
	}
	var ref struct {
		Secret string `yaml:"secret"`
		Config string `yaml:"config"`
		Key    string `yaml:"key"`
	}
	if err := strictly(n, &ref); err != nil {
		return err
	}
	v.Secret, v.Config, v.Key = ref.Secret, ref.Config, ref.Key
	if (v.Secret == "") == (v.Config == "") || v.Key == "" {
		return fmt.Errorf("line %d: want a text, {secret: NAME, key: KEY} or {config: NAME, key: KEY}", n.Line)
	}
	return objectName(v.Secret + v.Config)
}

// strictly decodes a part, and gives the first thing that is wrong with it.
func strictly(n *yaml.Node, into any) error {
	found := pipeline.Decode(n, into, "", "")
	if len(found) == 0 {
		return nil
	}
	text := found[0].Message
	if found[0].Hint != "" {
		text += "; " + found[0].Hint
	}
	return fmt.Errorf("line %d: %s", found[0].Line, text)
}

// Data is the volume that stages and sinks keep checkpoints and files on. A partition may move from one pod to
// another, so all of them must reach it. Where checkpoint.to is a bucket, and files go into buckets too, none is needed.
type Data struct {
	Claim string `yaml:"claim"` // name of a PersistentVolumeClaim that many pods can write (ReadWriteMany); not needed where checkpoint.to is a bucket
	Size  string `yaml:"size"`  // with it the claim itself is rendered, so large: 20Gi
	Class string `yaml:"class"` // its storage class; "" is the cluster's default
}

// Network is what the NetworkPolicy lets through beside what follows from the plan.
type Network struct {
	Policy bool    `yaml:"policy"` // render one: nothing may talk to or be reached by the pods but what is named
	Egress []int32 `yaml:"egress"` // TCP ports that pods may talk to, beside those of the addresses in env
}

// Node is how one role runs.
type Node struct {
	Replicas  int32            `yaml:"replicas"` // 0 is one
	CPU       string           `yaml:"cpu"`      // asked for: 500m, 2; there is no limit
	Memory    string           `yaml:"memory"`   // asked for, and the limit: 512Mi
	Grace     time.Duration    `yaml:"grace"`    // from SIGTERM to SIGKILL
	Autoscale *Autoscale       `yaml:"autoscale"`
	Service   string           `yaml:"service"`        // of the gateway: ClusterIP, NodePort or LoadBalancer
	Priority  string           `yaml:"priority_class"` // name of a PriorityClass
	Env       map[string]Value `yaml:"env"`            // over those of all nodes
	Mounts    []Mount          `yaml:"mounts"`
}

// Autoscale lets the cluster choose the replicas.
type Autoscale struct {
	With string `yaml:"with"` // hpa (by CPU) or keda (by lag)
	Min  int32  `yaml:"min"`  // 0 needs keda
	Max  int32  `yaml:"max"`  // at most the partitions, but for the gateway
	CPU  int32  `yaml:"cpu"`  // of hpa: percent of the CPU asked for
	Lag  int32  `yaml:"lag"`  // of keda: messages a replica may lag behind; a message holds up to thousands of rows
}

// Mount puts files into the container: certificates, a device registry.
type Mount struct {
	Secret string `yaml:"secret"` // name of a Secret, or
	Config string `yaml:"config"` // of a ConfigMap
	At     string `yaml:"at"`     // folder
}

// Defaults are the settings where pipeline.yaml says nothing.
func Defaults() *Settings {
	return &Settings{
		Network:  Network{Policy: true},
		Defaults: Node{Replicas: 1, CPU: "250m", Memory: "512Mi", Grace: time.Minute, Service: "ClusterIP"},
	}
}

// Findings is what is wrong with the section deploy, or with the plan for running elsewhere.
type Findings []pipeline.Finding

func (f Findings) Error() string {
	var lines []string
	for _, one := range f {
		lines = append(lines, one.String())
	}
	return strings.Join(lines, "\n")
}

// Read reads the section deploy strictly. A file without one gives the defaults.
func Read(spec *pipeline.Spec) (*Settings, error) {
	s := Defaults()
	if findings := pipeline.Decode(&spec.Deploy, s, "deploy", spec.File); len(findings) > 0 {
		return nil, Findings(findings)
	}
	return s, nil
}

var (
	envName   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	imageName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._:/-]*[a-z0-9])?(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$`)
)

// Validate checks what Kubernetes would refuse, and what would be a surprise.
func (s *Settings) Validate() error {
	var errs []error
	if s.Image != "" && !imageName.MatchString(s.Image) {
		errs = append(errs, fmt.Errorf("image %q is no image; write repository:tag or repository@sha256:…", s.Image))
	}
	if s.Stages != "" && !imageName.MatchString(s.Stages) {
		errs = append(errs, fmt.Errorf("stages_image %q is no image; write repository:tag or repository@sha256:…", s.Stages))
	}
	if s.Namespace != "" && len(validation.IsDNS1123Label(s.Namespace)) > 0 {
		errs = append(errs, fmt.Errorf("namespace %q is no name of a namespace", s.Namespace))
	}
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		errs = append(errs, variableName("env", name))
	}
	for _, port := range s.Network.Egress {
		if port < 1 || port > 65535 {
			errs = append(errs, fmt.Errorf("network: egress holds %d, which is no port", port))
		}
	}
	return errors.Join(errs...)
}

// Validate checks the claim.
func (d *Data) Validate() error {
	switch {
	case d.Claim == "" && (d.Size != "" || d.Class != ""):
		return errors.New("claim is missing; size and class are the claim's")
	case d.Claim != "" && objectName(d.Claim) != nil:
		return fmt.Errorf("claim: %w", objectName(d.Claim))
	case d.Size != "":
		return quantity("size", d.Size)
	}
	return nil
}

func variableName(where, name string) error {
	if !envName.MatchString(name) {
		return fmt.Errorf("%s: %q is no name of a variable", where, name)
	}
	return nil
}

func objectName(name string) error {
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return fmt.Errorf("%q is no name of an object: %s", name, problems[0])
	}
	return nil
}

func quantity(what, q string) error {
	if x, err := resource.ParseQuantity(q); err != nil || x.Sign() <= 0 {
		return fmt.Errorf("%s is %q; write a quantity such as 500m or 512Mi", what, q)
	}
	return nil
}

// Validate checks a node by itself.
func (n *Node) Validate() error {
	var errs []error
	if n.Replicas < 0 || n.Replicas > 10_000 {
		errs = append(errs, fmt.Errorf("replicas is %d; want 0 to 10000", n.Replicas))
	}
	if n.CPU != "" {
		errs = append(errs, quantity("cpu", n.CPU))
	}
	if n.Memory != "" {
		err := quantity("memory", n.Memory)
		if q, perr := resource.ParseQuantity(n.Memory); perr == nil && q.Value() < 32<<20 {
			err = fmt.Errorf("memory is %s; a role needs 32Mi at least", n.Memory)
		}
		errs = append(errs, err)
	}
	if n.Grace != 0 && (n.Grace < 20*time.Second || n.Grace > time.Hour || n.Grace%time.Second != 0) {
		errs = append(errs, fmt.Errorf("grace is %v; want whole seconds, 20s to 1h: a role finishes what it has in hand", n.Grace))
	}
	if n.Service != "" && !slices.Contains([]string{"ClusterIP", "NodePort", "LoadBalancer"}, n.Service) {
		errs = append(errs, fmt.Errorf("service is %q; want ClusterIP, NodePort or LoadBalancer", n.Service))
	}
	for _, name := range slices.Sorted(maps.Keys(n.Env)) {
		errs = append(errs, variableName("env", name))
	}
	return errors.Join(errs...)
}

// Validate checks an autoscaler by itself.
func (a *Autoscale) Validate() error {
	if a.With == "" {
		a.With = "hpa"
	}
	if a.CPU == 0 {
		a.CPU = 70
	}
	if a.Lag == 0 {
		a.Lag = 50
	}
	switch {
	case a.With != "hpa" && a.With != "keda":
		return fmt.Errorf("with is %q; want hpa or keda", a.With)
	case a.Min < 0 || a.Min == 0 && a.With == "hpa":
		return fmt.Errorf("min is %d; want 1 at least, or 0 with keda", a.Min)
	case a.Max < max(1, a.Min):
		return fmt.Errorf("max is %d; want %d at least", a.Max, max(1, a.Min))
	case a.CPU < 1 || a.CPU > 100:
		return fmt.Errorf("cpu is %d; want 1 to 100 percent", a.CPU)
	case a.Lag < 1:
		return fmt.Errorf("lag is %d; want 1 at least", a.Lag)
	}
	return nil
}

// Validate checks a mount.
func (m *Mount) Validate() error {
	switch {
	case (m.Secret == "") == (m.Config == ""):
		return errors.New("a mount is of a secret or of a config")
	case !strings.HasPrefix(m.At, "/") || strings.Contains(m.At, "..") || strings.ContainsAny(m.At, ":,"):
		return fmt.Errorf("at is %q; want a folder, such as /etc/hearthline/tls", m.At)
	case taken(m.At):
		return fmt.Errorf("at: %s is taken; mount into a folder of its own, such as /etc/hearthline/tls", m.At)
	}
	return objectName(m.Secret + m.Config)
}

// taken says whether a folder is one of the container's own, or within one.
func taken(at string) bool {
	at = path.Clean(at)
	for _, own := range []string{configDir, dataDir, "/tmp", binary} {
		if at == own || strings.HasPrefix(at, own+"/") || strings.HasPrefix(own, strings.TrimSuffix(at, "/")+"/") {
			return true
		}
	}
	return false
}

// over lays what is said of a node over the defaults.
func (n Node) over(d Node) Node {
	or := func(a, b string) string {
		if a != "" {
			return a
		}
		return b
	}
	if n.Replicas == 0 {
		n.Replicas = max(1, d.Replicas)
	}
	if n.Grace == 0 {
		n.Grace = d.Grace
	}
	if n.Autoscale == nil {
		n.Autoscale = d.Autoscale
	}
	n.CPU, n.Memory, n.Service, n.Priority = or(n.CPU, d.CPU), or(n.Memory, d.Memory), or(n.Service, d.Service), or(n.Priority, d.Priority)
	env := maps.Clone(d.Env)
	if env == nil {
		env = map[string]Value{}
	}
	maps.Copy(env, n.Env)
	n.Env, n.Mounts = env, append(slices.Clone(d.Mounts), n.Mounts...)
	return n
}

// memoryLimit is 90 % of a role's memory in whole MiB: what the Go runtime keeps its heap under, so that it collects
// before the kernel kills. Where workers use memory, too, it is half.
func (r *role) memoryLimit() string {
	share := 0.9
	if r.workers {
		share = 0.5
	}
	q := resource.MustParse(r.run.Memory)
	return fmt.Sprintf("%dMiB", int64(math.Floor(float64(q.Value())*share/(1<<20))))
}
