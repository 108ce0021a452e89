package deploy

import (
	"fmt"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// How fast autoscalers go: up by at most two pods a minute, down by one a minute once five minutes agree. Every change
// moves partitions, and moving costs a pause.
const (
	calmSeconds = 300
	stepSeconds = 60
	stepUp      = 2
	stepDown    = 1
)

func behavior() *autoscalingv2.HorizontalPodAutoscalerBehavior {
	rule := func(window, pods int32) *autoscalingv2.HPAScalingRules {
		return &autoscalingv2.HPAScalingRules{
			StabilizationWindowSeconds: new(window),
			SelectPolicy:               new(autoscalingv2.MaxChangePolicySelect),
			Policies:                   []autoscalingv2.HPAScalingPolicy{{Type: autoscalingv2.PodsScalingPolicy, Value: pods, PeriodSeconds: stepSeconds}},
		}
	}
	return &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: rule(0, stepUp), ScaleDown: rule(calmSeconds, stepDown)}
}

func (k *cluster) autoscaler(one *role, a *Autoscale) any {
	if a.With == "keda" {
		return k.keda(one, a)
	}
	return &autoscalingv2.HorizontalPodAutoscaler{
		TypeMeta:   metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscaler"},
		ObjectMeta: k.meta(k.object(one), k.labels(one)),
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: k.object(one)},
			MinReplicas:    new(a.Min),
			MaxReplicas:    a.Max,
			Behavior:       behavior(),
			Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
				Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: new(a.CPU)},
			}}},
		},
	}
}

// scaledObject is KEDA's ScaledObject (keda.sh/docs, v2.17), as far as it is used here.
type scaledObject struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              scaledSpec `json:"spec"`
}

type scaledSpec struct {
	ScaleTargetRef  map[string]string `json:"scaleTargetRef"`
	MinReplicaCount int32             `json:"minReplicaCount"`
	MaxReplicaCount int32             `json:"maxReplicaCount"`
	Fallback        scaledFallback    `json:"fallback"`
	Advanced        map[string]any    `json:"advanced"`
	Triggers        []scaledTrigger   `json:"triggers"`
}

type scaledFallback struct {
	FailureThreshold int32  `json:"failureThreshold"`
	Replicas         int32  `json:"replicas"`
	Behavior         string `json:"behavior"`
}

type scaledTrigger struct {
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata"`
}

// keda scales by lag: of each stream the role reads, in its consumer group.
func (k *cluster) keda(one *role, a *Autoscale) any {
	o := &scaledObject{
		TypeMeta:   metav1.TypeMeta{APIVersion: "keda.sh/v1alpha1", Kind: "ScaledObject"},
		ObjectMeta: k.meta(k.object(one), k.labels(one)),
		Spec: scaledSpec{
			ScaleTargetRef:  map[string]string{"name": k.object(one)},
			MinReplicaCount: a.Min, MaxReplicaCount: a.Max,
			// When the brokers cannot be asked, nobody is taken away.
			Fallback: scaledFallback{FailureThreshold: 3, Replicas: max(1, a.Min), Behavior: "currentReplicasIfHigher"},
			Advanced: map[string]any{"horizontalPodAutoscalerConfig": map[string]any{"behavior": behavior()}},
		},
	}
	for _, stream := range one.reads {
		m := map[string]string{
			"consumerGroup":     one.group,
			"topic":             stream,
			"lagThreshold":      fmt.Sprint(a.Lag),
			"offsetResetPolicy": "earliest", // as the consumers read
		}
		if one.source != nil && one.source.Begin == "last" {
			m["offsetResetPolicy"] = "latest"
		}
		k.bootstrap(one, m)
		o.Spec.Triggers = append(o.Spec.Triggers, scaledTrigger{"kafka", m})
	}
	return o
}

// bootstrap says where the brokers of a role's streams are: as a text, or as the variable of the container.
func (k *cluster) bootstrap(one *role, m map[string]string) {
	path, brokers := "kafka.brokers", k.plan.Spec.Kafka.Brokers
	if one.source != nil && one.source.Foreign {
		path, brokers = "sources."+one.node+".brokers", one.source.Kafka.Brokers
	}
	for _, use := range k.plan.Spec.Env {
		if !strings.HasPrefix(use.Path, path) {
			continue
		}
		if v, ok := k.env[use.Name]; ok && v.Text == "" {
			m["bootstrapServersFromEnv"] = use.Name
		} else if ok {
			m["bootstrapServers"] = strings.ReplaceAll(v.Text, " ", "")
		} else {
			m["bootstrapServers"] = use.Default
		}
		return
	}
	m["bootstrapServers"] = strings.Join(brokers, ",")
}
