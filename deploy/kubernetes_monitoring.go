package deploy

import (
	_ "embed"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// What operators watch by; both work without Kubernetes, too.
var (
	//go:embed monitoring/alerts.yaml
	alerts []byte // rules for Prometheus
	//go:embed monitoring/dashboard.json
	dashboard []byte // for Grafana
)

// operated is an object of the Prometheus operator (monitoring.coreos.com/v1), as far as it is used here.
type operated struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              any `json:"spec"`
}

type podMonitorSpec struct {
	Selector            *metav1.LabelSelector `json:"selector"`
	PodMetricsEndpoints []podMetricsEndpoint  `json:"podMetricsEndpoints"`
}

type podMetricsEndpoint struct {
	Port string `json:"port"`
	Path string `json:"path"`
}

// monitoring renders what the Prometheus operator scrapes and alerts by, and Grafana's dashboard as its sidecar finds it.
func (k *cluster) monitoring() {
	of := func(kind string) metav1.TypeMeta {
		return metav1.TypeMeta{APIVersion: "monitoring.coreos.com/v1", Kind: kind}
	}
	var rules any
	if err := yaml.Unmarshal(alerts, &rules); err != nil {
		k.errs = append(k.errs, fmt.Errorf("read alerts: %w", err))
	}
	labels := k.labels(nil)
	labels["grafana_dashboard"] = "1"
	k.file("monitoring.yaml",
		&operated{of("PodMonitor"), k.meta(k.app(), k.labels(nil)), podMonitorSpec{k.selector(nil), []podMetricsEndpoint{{"ops", "/metrics"}}}},
		&operated{of("PrometheusRule"), k.meta(k.app(), k.labels(nil)), rules},
		&corev1.ConfigMap{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: k.meta(k.app()+"-dashboard", labels),
			Data:       map[string]string{"hearthline.json": string(dashboard)},
		})
}
