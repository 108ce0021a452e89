package deploy

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// preStop is how long a gateway goes on after it was told to end, so that load balancers learn of it first.
const preStop = 5 * time.Second

// role renders a role: its Deployment, and what stands around it.
func (k *cluster) role(one *role) {
	objects := []any{k.deployment(one)}
	if one.kind == "gateway" {
		objects = append(objects, k.service(one))
	}
	least := one.run.Replicas
	if a := one.run.Autoscale; a != nil {
		least = a.Min
		objects = append(objects, k.autoscaler(one, a))
	}
	if least >= 2 { // of one pod it would only hold up the draining of a machine
		objects = append(objects, &policyv1.PodDisruptionBudget{
			TypeMeta:   metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"},
			ObjectMeta: k.meta(k.object(one), k.labels(one)),
			Spec: policyv1.PodDisruptionBudgetSpec{
				MaxUnavailable:             new(intstr.FromInt32(1)),
				Selector:                   k.selector(one),
				UnhealthyPodEvictionPolicy: new(policyv1.AlwaysAllow),
			},
		})
	}
	k.file(one.name+".yaml", objects...)
}

// object is the name of a role's objects; two pipelines may share a namespace.
func (k *cluster) object(one *role) string { return k.plan.Spec.Name + "-" + one.name }

func (k *cluster) deployment(one *role) *appsv1.Deployment {
	d := &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: k.meta(k.object(one), k.labels(one)),
		Spec: appsv1.DeploymentSpec{
			Selector: k.selector(one),
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: k.labels(one)}, Spec: k.pod(one)},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{
				// A consumer more would only take partitions from the others, to give them back.
				MaxSurge: new(intstr.FromInt32(0)), MaxUnavailable: new(intstr.FromInt32(1)),
			}},
		},
	}
	if one.kind == "gateway" {
		d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: new(intstr.FromInt32(1)), MaxUnavailable: new(intstr.FromInt32(0))}
	}
	if one.run.Autoscale == nil { // else the autoscaler owns it
		d.Spec.Replicas = new(one.run.Replicas)
	}
	return d
}

func (k *cluster) pod(one *role) corev1.PodSpec {
	grace := int64(one.run.Grace / time.Second)
	volumes, mounts := k.volumes(one)
	image := k.settings.Image
	if one.workers {
		image = k.settings.Stages
	}
	c := corev1.Container{
		Name:           one.kind,
		Image:          image,
		Args:           one.args(),
		Env:            k.environment(one),
		Ports:          []corev1.ContainerPort{{Name: "ops", ContainerPort: opsPort, Protocol: corev1.ProtocolTCP}},
		VolumeMounts:   mounts,
		Resources:      resources(one.run),
		StartupProbe:   probe("/healthz", 2, 60),
		LivenessProbe:  probe("/healthz", 10, 6), // its loops turn; whether brokers are reached is no reason to kill it
		ReadinessProbe: probe("/readyz", 5, 2),
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false),
			ReadOnlyRootFilesystem:   new(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
	for _, p := range one.ports {
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: p.name, ContainerPort: p.number, Protocol: corev1.ProtocolTCP})
	}
	if p := one.peers; p != nil {
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: p.name, ContainerPort: p.number, Protocol: corev1.ProtocolTCP})
	}
	if one.kind == "gateway" {
		c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: int64(preStop / time.Second)}}}
		grace += int64(preStop / time.Second)
	}
	return corev1.PodSpec{
		ServiceAccountName:            k.app(),
		AutomountServiceAccountToken:  new(false),
		EnableServiceLinks:            new(false),
		PriorityClassName:             one.run.Priority,
		TerminationGracePeriodSeconds: &grace,
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot: new(true), RunAsUser: new(int64(userID)), RunAsGroup: new(int64(userID)), FSGroup: new(int64(userID)),
			FSGroupChangePolicy: new(corev1.FSGroupChangeOnRootMismatch),
			SeccompProfile:      &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		TopologySpreadConstraints: []corev1.TopologySpreadConstraint{
			k.spread(one, "topology.kubernetes.io/zone"), k.spread(one, "kubernetes.io/hostname"),
		},
		Containers: []corev1.Container{c},
		Volumes:    volumes,
	}
}

func (k *cluster) spread(one *role, over string) corev1.TopologySpreadConstraint {
	return corev1.TopologySpreadConstraint{MaxSkew: 1, TopologyKey: over, WhenUnsatisfiable: corev1.ScheduleAnyway,
		LabelSelector: k.selector(one), MatchLabelKeys: []string{"pod-template-hash"}}
}

func probe(at string, period, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: at, Port: intstr.FromString("ops")}},
		PeriodSeconds: period, FailureThreshold: failures, TimeoutSeconds: 2,
	}
}

// resources asks for CPU and memory. CPU has no limit: throttled, a consumer misses its heartbeats.
func resources(n Node) corev1.ResourceRequirements {
	memory := resource.MustParse(n.Memory)
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(n.CPU), corev1.ResourceMemory: memory},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: memory},
	}
}

// environment is what the container decides, then what pipeline.yaml asks for, by name.
func (k *cluster) environment(one *role) []corev1.EnvVar {
	env := []corev1.EnvVar{
		{Name: "GOMEMLIMIT", Value: one.memoryLimit()},
		{Name: "HEARTHLINE_DATA", Value: dataDir},
		// A container that died and is started again keeps its pod's name, and with it its place in the consumer group.
		{Name: "HEARTHLINE_INSTANCE", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
		{Name: "HEARTHLINE_LOG", Value: "json"},
		// /metrics asks for no token where a NetworkPolicy keeps others than the cluster's pods away.
		{Name: "HEARTHLINE_OPEN_METRICS", Value: strconv.FormatBool(k.settings.Network.Policy)},
		{Name: "HEARTHLINE_OPS", Value: fmt.Sprintf("0.0.0.0:%d", opsPort)},
		{Name: "HEARTHLINE_PIPELINE", Value: path.Join(configDir, "pipeline.yaml")},
	}
	if one.peers != nil { // what other gateways reach it by
		env = slices.Insert(env, 1, corev1.EnvVar{Name: "HEARTHLINE_ADDRESS", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}})
	}
	own := map[string]bool{}
	for _, e := range env {
		own[e.Name] = true
	}
	values := k.envOf(one)
	for _, name := range sortedKeys(values) {
		v := values[name]
		if own[name] {
			continue
		}
		e := corev1.EnvVar{Name: name, Value: v.Text}
		switch {
		case v.Secret != "":
			e.ValueFrom = &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: v.Secret}, Key: v.Key}}
		case v.Config != "":
			e.ValueFrom = &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: v.Config}, Key: v.Key}}
		default:
			// Kubernetes expands $(NAME) in values; a value is meant as it stands.
			e.Value = strings.ReplaceAll(v.Text, "$(", "$$(")
		}
		env = append(env, e)
	}
	return env
}

func (k *cluster) volumes(one *role) ([]corev1.Volume, []corev1.VolumeMount) {
	size := func(s string) *resource.Quantity { return new(resource.MustParse(s)) }
	data := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: size("64Mi")}}
	if one.keeps() && k.settings.Data.Claim != "" { // without a claim all is in buckets
		data = corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: k.settings.Data.Claim}}
	}
	volumes := []corev1.Volume{
		{Name: "pipeline", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: k.configMap}}}},
		{Name: "data", VolumeSource: data},
		{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: size("256Mi")}}},
	}
	mounts := []corev1.VolumeMount{
		{Name: "pipeline", MountPath: configDir, ReadOnly: true},
		{Name: "data", MountPath: dataDir},
		{Name: "tmp", MountPath: "/tmp"},
	}
	for i, m := range one.run.Mounts {
		name := fmt.Sprintf("mount-%d", i+1)
		source := corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: m.Secret, DefaultMode: new(int32(0o440))}}
		if m.Config != "" {
			source = corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: m.Config}}}
		}
		volumes = append(volumes, corev1.Volume{Name: name, VolumeSource: source})
		mounts = append(mounts, corev1.VolumeMount{Name: name, MountPath: m.At, ReadOnly: true})
	}
	return volumes, mounts
}

func (k *cluster) service(one *role) *corev1.Service {
	s := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: k.meta(k.object(one), k.labels(one)),
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceType(one.run.Service), Selector: k.selector(one).MatchLabels},
	}
	if one.run.Service != "ClusterIP" {
		// The client's own address reaches the gateway, and connections take no second hop.
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	for _, p := range one.ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: p.name, Port: p.number, TargetPort: intstr.FromString(p.name), Protocol: corev1.ProtocolTCP})
	}
	return s
}
