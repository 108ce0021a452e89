package deploy_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	yamlutil "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"hearthline/deploy"
	"hearthline/deploy/promtest"
)

// elsewhere are the objects that the test's pipeline names and that are the cluster's own.
var elsewhere = []string{"Secret/alerts", "Secret/clickhouse", "ConfigMap/clickhouse", "ConfigMap/registry", "Secret/gateway-tls", "Secret/gateway-credentials", "Secret/gateway-peers", "Secret/partner"}

// decode reads manifests as the API server does, unknown and double fields refused.
func decode(files []deploy.File) ([]runtime.Object, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, corev1.AddToScheme, autoscalingv2.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	var objects []runtime.Object
	for _, f := range files {
		if f.Name == "kustomization.yaml" {
			continue
		}
		docs := yamlutil.NewDocumentDecoder(io.NopCloser(bytes.NewReader(f.Data)))
		for {
			buf := make([]byte, 1<<20)
			n, err := docs.Read(buf)
			if err == io.EOF {
				break
			} else if err != nil {
				return nil, err
			}
			if bytes.Contains(buf[:n], []byte("apiVersion: keda.sh/")) || bytes.Contains(buf[:n], []byte("apiVersion: monitoring.coreos.com/")) {
				u := &unstructured.Unstructured{}
				if err := yaml.UnmarshalStrict(buf[:n], &u.Object); err != nil {
					return nil, fmt.Errorf("%s: %w", f.Name, err)
				}
				objects = append(objects, u)
				continue
			}
			o, _, err := strict.Decode(buf[:n], nil, nil)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.Name, err)
			}
			objects = append(objects, o)
		}
	}
	return objects, nil
}

// inspector finds what no single object shows.
type inspector struct {
	have        []string // Kind/name
	deployments map[string]*appsv1.Deployment
	problems    []string
}

func (in *inspector) saysf(format string, args ...any) {
	in.problems = append(in.problems, fmt.Sprintf(format, args...))
}

func inspect(objects []runtime.Object) []string {
	in := &inspector{have: slices.Clone(elsewhere), deployments: map[string]*appsv1.Deployment{}}
	for _, o := range objects {
		switch o := o.(type) {
		case *appsv1.Deployment:
			in.deployments[o.Name] = o
		case *corev1.ConfigMap:
			in.have = append(in.have, "ConfigMap/"+o.Name)
		case *corev1.PersistentVolumeClaim:
			in.have = append(in.have, "PersistentVolumeClaim/"+o.Name)
		case *corev1.ServiceAccount:
			in.have = append(in.have, "ServiceAccount/"+o.Name)
		}
	}
	var policies []*networkingv1.NetworkPolicy
	for _, o := range objects {
		switch o := o.(type) {
		case *appsv1.Deployment:
			in.deployment(o)
		case *corev1.Service:
			in.service(o)
		case *policyv1.PodDisruptionBudget:
			in.selects("PodDisruptionBudget "+o.Name, o.Spec.Selector.MatchLabels)
		case *networkingv1.NetworkPolicy:
			in.selects("NetworkPolicy "+o.Name, o.Spec.PodSelector.MatchLabels)
			for _, rule := range o.Spec.Ingress {
				for _, p := range rule.Ports {
					in.opens(o.Name, p.Port.IntVal)
				}
			}
			policies = append(policies, o)
		case *autoscalingv2.HorizontalPodAutoscaler:
			in.scales(o.Spec.ScaleTargetRef.Name)
		case *unstructured.Unstructured:
			switch o.GetKind() {
			case "ScaledObject":
				name, _, _ := unstructured.NestedString(o.Object, "spec", "scaleTargetRef", "name")
				in.scales(name)
				in.keda(o)
			case "PodMonitor":
				in.scrapes(o)
			case "PrometheusRule":
				in.alerts(o)
			default:
				in.saysf("%s is of no known kind", o.GetKind())
			}
		}
	}
	in.meet(policies)
	return in.problems
}

// meet checks that gateways reach each other's port, each at its own pod, and that nobody else does.
func (in *inspector) meet(policies []*networkingv1.NetworkPolicy) {
	for _, d := range in.deployments {
		c := d.Spec.Template.Spec.Containers[0]
		i := slices.IndexFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == "peers" })
		if i < 0 {
			continue
		}
		at := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "HEARTHLINE_ADDRESS" })
		if at < 0 || c.Env[at].ValueFrom == nil || c.Env[at].ValueFrom.FieldRef == nil || c.Env[at].ValueFrom.FieldRef.FieldPath != "status.podIP" {
			in.saysf("%s does not know where others reach it", d.Name)
		}
		same := func(peers []networkingv1.NetworkPolicyPeer) bool {
			return len(peers) == 1 && peers[0].NamespaceSelector == nil && peers[0].PodSelector != nil && maps.Equal(peers[0].PodSelector.MatchLabels, d.Spec.Selector.MatchLabels)
		}
		into, out := 0, 0
		for _, p := range policies {
			if !labels.SelectorFromSet(p.Spec.PodSelector.MatchLabels).Matches(labels.Set(d.Spec.Template.Labels)) {
				continue
			}
			for _, rule := range p.Spec.Ingress {
				if !names(rule.Ports, c.Ports[i].ContainerPort) {
					continue
				}
				if into++; !same(rule.From) {
					in.saysf("NetworkPolicy %s lets others than gateways reach the port of peers", p.Name)
				}
			}
			for _, rule := range p.Spec.Egress {
				if names(rule.Ports, c.Ports[i].ContainerPort) && same(rule.To) {
					out++
				}
			}
		}
		if into != 1 || out != 1 {
			in.saysf("%s: gateways do not reach each other: %d rules in, %d out", d.Name, into, out)
		}
	}
}

func names(ports []networkingv1.NetworkPolicyPort, number int32) bool {
	return slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool { return p.Port.IntVal == number })
}

func (in *inspector) need(who, kind, name string) {
	if !slices.Contains(in.have, kind+"/"+name) {
		in.saysf("%s names %s %s, which nobody makes", who, kind, name)
	}
}

func (in *inspector) selects(who string, selector map[string]string) []*appsv1.Deployment {
	var found []*appsv1.Deployment
	for _, d := range in.deployments {
		if labels.SelectorFromSet(selector).Matches(labels.Set(d.Spec.Template.Labels)) {
			found = append(found, d)
		}
	}
	if len(selector) == 0 || len(found) == 0 {
		in.saysf("%s selects nothing", who)
	}
	return found
}

func (in *inspector) opens(who string, port int32) {
	for _, d := range in.deployments {
		for _, p := range d.Spec.Template.Spec.Containers[0].Ports {
			if p.ContainerPort == port {
				return
			}
		}
	}
	in.saysf("%s opens port %d, on which nobody listens", who, port)
}

func (in *inspector) service(s *corev1.Service) {
	for _, d := range in.selects("Service "+s.Name, s.Spec.Selector) {
		for _, p := range s.Spec.Ports {
			if p.TargetPort.StrVal == "peers" {
				in.saysf("Service %s leads to the port of peers", s.Name)
			}
			if !slices.ContainsFunc(d.Spec.Template.Spec.Containers[0].Ports, func(c corev1.ContainerPort) bool { return c.Name == p.TargetPort.StrVal }) {
				in.saysf("Service %s: %s has no port %s", s.Name, d.Name, p.TargetPort.StrVal)
			}
		}
	}
}

func (in *inspector) scales(name string) {
	d := in.deployments[name]
	if d == nil {
		in.saysf("an autoscaler of %q, which is not there", name)
	} else if d.Spec.Replicas != nil {
		in.saysf("%s has replicas, and an autoscaler that owns them", name)
	}
}

// scrapes checks that a PodMonitor finds every pod, and its port.
func (in *inspector) scrapes(o *unstructured.Unstructured) {
	selector, _, _ := unstructured.NestedStringMap(o.Object, "spec", "selector", "matchLabels")
	if n := len(in.selects("PodMonitor "+o.GetName(), selector)); n != len(in.deployments) {
		in.saysf("PodMonitor %s finds %d of %d Deployments", o.GetName(), n, len(in.deployments))
	}
	ends, _, _ := unstructured.NestedSlice(o.Object, "spec", "podMetricsEndpoints")
	for _, d := range in.deployments {
		for _, e := range ends {
			if !slices.ContainsFunc(d.Spec.Template.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == e.(map[string]any)["port"] }) {
				in.saysf("PodMonitor %s: %s has no such port: %v", o.GetName(), d.Name, e)
			}
		}
	}
	if len(ends) != 1 {
		in.saysf("PodMonitor %s has %d endpoints", o.GetName(), len(ends))
	}
}

// alerts has Prometheus read the rules.
func (in *inspector) alerts(o *unstructured.Unstructured) {
	text, err := yaml.Marshal(o.Object["spec"])
	if err != nil {
		in.saysf("PrometheusRule: %v", err)
	}
	groups, errs := rulefmt.Parse(text, false, model.LegacyValidation, promtest.Language, nil)
	if len(errs) > 0 || len(groups.Groups) == 0 {
		in.saysf("PrometheusRule: %v", errs)
	}
}

// keda knows the names of a Kafka trigger; KEDA itself takes any.
func (in *inspector) keda(o *unstructured.Unstructured) {
	known := []string{"bootstrapServers", "bootstrapServersFromEnv", "consumerGroup", "topic", "lagThreshold", "activationLagThreshold", "offsetResetPolicy"}
	triggers, _, _ := unstructured.NestedSlice(o.Object, "spec", "triggers")
	if len(triggers) == 0 {
		in.saysf("ScaledObject %s has no trigger", o.GetName())
	}
	for _, t := range triggers {
		metadata, _, _ := unstructured.NestedStringMap(t.(map[string]any), "metadata")
		for key := range metadata {
			if !slices.Contains(known, key) {
				in.saysf("ScaledObject %s: no such trigger metadata: %s", o.GetName(), key)
			}
		}
		if (metadata["bootstrapServers"] == "") == (metadata["bootstrapServersFromEnv"] == "") || metadata["topic"] == "" || metadata["consumerGroup"] == "" {
			in.saysf("ScaledObject %s: incomplete trigger %v", o.GetName(), metadata)
		}
	}
}

func (in *inspector) deployment(d *appsv1.Deployment) {
	pod := d.Spec.Template.Spec
	c := pod.Containers[0]
	if !labels.SelectorFromSet(d.Spec.Selector.MatchLabels).Matches(labels.Set(d.Spec.Template.Labels)) {
		in.saysf("%s does not select its own pods", d.Name)
	}
	for _, other := range in.deployments {
		if other != d && labels.SelectorFromSet(d.Spec.Selector.MatchLabels).Matches(labels.Set(other.Spec.Template.Labels)) {
			in.saysf("%s selects the pods of %s", d.Name, other.Name)
		}
	}
	in.need(d.Name, "ServiceAccount", pod.ServiceAccountName)
	for _, v := range pod.Volumes {
		switch {
		case v.ConfigMap != nil:
			in.need(d.Name, "ConfigMap", v.ConfigMap.Name)
		case v.Secret != nil:
			in.need(d.Name, "Secret", v.Secret.SecretName)
		case v.PersistentVolumeClaim != nil:
			in.need(d.Name, "PersistentVolumeClaim", v.PersistentVolumeClaim.ClaimName)
		}
		if v.EmptyDir != nil && v.EmptyDir.SizeLimit == nil {
			in.saysf("%s: emptyDir %s may fill the machine", d.Name, v.Name)
		}
	}
	for i, m := range c.VolumeMounts {
		if !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
			in.saysf("%s mounts %s, which is no volume", d.Name, m.Name)
		}
		for _, other := range c.VolumeMounts[:i] {
			if m.MountPath == other.MountPath || strings.HasPrefix(m.MountPath, other.MountPath+"/") || strings.HasPrefix(other.MountPath, m.MountPath+"/") {
				in.saysf("%s mounts %s over %s", d.Name, m.MountPath, other.MountPath)
			}
		}
	}
	in.environment(d, c)
	in.restricted(d, pod, c)
	if c.StartupProbe == nil || c.LivenessProbe == nil || c.ReadinessProbe == nil || c.ReadinessProbe.HTTPGet.Path == c.LivenessProbe.HTTPGet.Path {
		in.saysf("%s: probes are missing, or the same", d.Name)
	}
	least := int64(20)
	if c.Lifecycle != nil {
		least += c.Lifecycle.PreStop.Sleep.Seconds
	}
	if *pod.TerminationGracePeriodSeconds < least {
		in.saysf("%s has %d s to end", d.Name, *pod.TerminationGracePeriodSeconds)
	}
}

func (in *inspector) environment(d *appsv1.Deployment, c corev1.Container) {
	seen := map[string]bool{}
	for _, e := range c.Env {
		if seen[e.Name] {
			in.saysf("%s has %s twice", d.Name, e.Name)
		}
		seen[e.Name] = true
		if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
			in.need(d.Name, "Secret", e.ValueFrom.SecretKeyRef.Name)
		}
		if e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil {
			in.need(d.Name, "ConfigMap", e.ValueFrom.ConfigMapKeyRef.Name)
		}
		if e.Name == "GOMEMLIMIT" {
			mib, err := strconv.ParseInt(strings.TrimSuffix(e.Value, "MiB"), 10, 64)
			if limit := c.Resources.Limits.Memory().Value(); err != nil || mib<<20 >= limit || mib<<20 < limit*8/10 {
				in.saysf("%s: GOMEMLIMIT %s for a limit of %d", d.Name, e.Value, limit)
			}
		}
	}
	if !seen["GOMEMLIMIT"] || !seen["HEARTHLINE_PIPELINE"] {
		in.saysf("%s lacks GOMEMLIMIT or HEARTHLINE_PIPELINE", d.Name)
	}
	if _, ok := c.Resources.Limits[corev1.ResourceCPU]; ok {
		in.saysf("%s has a CPU limit", d.Name)
	}
}

// restricted is the Pod Security Standard of that name (kubernetes.io/docs/concepts/security/pod-security-standards).
func (in *inspector) restricted(d *appsv1.Deployment, pod corev1.PodSpec, c corev1.Container) {
	p, s := pod.SecurityContext, c.SecurityContext
	if p == nil || s == nil || p.RunAsNonRoot == nil || !*p.RunAsNonRoot || p.SeccompProfile == nil || p.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault ||
		s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		in.saysf("%s is not restricted", d.Name)
	}
	if s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		in.saysf("%s can write its root, or has a token", d.Name)
	}
}

func TestManifestsFitTogether(t *testing.T) {
	plan, s := fromFile(t, "homes")
	s.Monitor = true
	files, err := deploy.Kubernetes(plan, s)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := decode(files)
	if err != nil {
		t.Fatal(err)
	}
	if len(objects) < 12 {
		t.Errorf("%d objects", len(objects))
	}
	for _, problem := range inspect(objects) {
		t.Error(problem)
	}
	var kustomization struct{ Resources []string }
	for _, f := range files {
		if f.Name == "kustomization.yaml" {
			if err := yaml.Unmarshal(f.Data, &kustomization); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(kustomization.Resources) != len(files)-1 {
		t.Errorf("kustomization.yaml lists %v of %d files", kustomization.Resources, len(files)-1)
	}
}

// The inspection above finds what it should: each change to what was rendered is one mistake.
func TestInspectionFinds(t *testing.T) {
	plan, s := fromFile(t, "homes")
	s.Monitor = true
	for _, change := range [][2]string{
		{"maxSurge: 1", "maxSurg: 1"},
		{"enableServiceLinks: false", "enableServiceLinks: \"no\""},
		{"claimName: hearthline-data", "claimName: other"},
		{"name: alerts", "name: alert"},
		{"name: hearthline-homes-", "name: hearthline-homes-x"},
		{"targetPort: mqtt", "targetPort: mqtts"},
		{"GOMEMLIMIT\n          value: 460MiB", "GOMEMLIMIT\n          value: 512MiB"},
		{"    name: homes-stage-score\n  triggers", "    name: homes-stage-scores\n  triggers"},
		{"lagThreshold", "lagTreshold"},
		{"terminationGracePeriodSeconds: 65", "terminationGracePeriodSeconds: 5"},
		{"runAsNonRoot: true", "runAsNonRoot: false"},
		{"mountPath: /etc/hearthline/tls", "mountPath: /etc/hearthline/pipeline/tls"},
		{"- port: 8443", "- port: 8444"},
		{"sizeLimit: 256Mi", "medium: Memory"},
		{"fieldPath: status.podIP", "fieldPath: spec.nodeName"},
		{"name: HEARTHLINE_ADDRESS", "name: HEARTHLINE_ADRESS"},
		{"  - from:\n    - podSelector:\n", "  - from:\n    - namespaceSelector: {}\n      podSelector:\n"},
		{"  - from:\n    - podSelector:\n        matchLabels:\n          app.kubernetes.io/component: gateway\n", "  - from:\n    - podSelector:\n        matchLabels:\n"},
		{"  egress:\n  - ports:\n    - port: 8884", "  egress:\n  - ports:\n    - port: 8883"},
		{"targetPort: http", "targetPort: peers"},
		{"  - path: /metrics\n    port: ops", "  - path: /metrics\n    port: metrics"},
		{"expr: absent(hearthline_ready)", "expr: absent(hearthline_ready"},
	} {
		files, err := deploy.Kubernetes(plan, s)
		if err != nil {
			t.Fatal(err)
		}
		changed := false
		for i, f := range files {
			if after := strings.Replace(string(f.Data), change[0], change[1], 1); after != string(f.Data) {
				files[i].Data, changed = []byte(after), true
				break
			}
		}
		if !changed {
			t.Errorf("nothing reads %q", change[0])
			continue
		}
		objects, err := decode(files)
		if err == nil && len(inspect(objects)) == 0 {
			t.Errorf("%q instead of %q was not found", change[1], change[0])
		}
	}
}
