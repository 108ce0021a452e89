package deploy

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"hearthline/pipeline"
)

// Kubernetes renders plain manifests and a kustomization.yaml: `kubectl apply -k FOLDER`. One Deployment a role; the
// ConfigMap holds pipeline.yaml and is named by its hash, so that a change rolls the pods and a rollback finds what it
// was; Secrets and, unless a size says so, the data's claim are the cluster's own and only named.
//
// The error is [Findings] when the plan cannot run on a cluster as it stands.
func Kubernetes(plan *pipeline.Plan, s *Settings) ([]File, error) {
	r := newRenderer(plan, s, "kubernetes")
	if s.Image == "" {
		r.find(r.at("deploy"), "deploy.image", "write deploy: {image: REGISTRY/hearthline@sha256:…}", "deploy.image is missing")
	}
	for _, one := range r.roles {
		if one.workers && s.Stages == "" {
			r.find(r.at("deploy"), "deploy.stages_image", "build it from what `hearthline render image` writes, and write deploy: {stages_image: REGISTRY/hearthline-stages@sha256:…}",
				"deploy.stages_image is missing: %s runs stages in Python or SQL", one.node)
			break
		}
	}
	if s.Data.Claim == "" && !r.checkpointsInBucket() {
		r.find(r.at("deploy"), "deploy.data.claim", "write deploy: {data: {claim: NAME}}, with size: 20Gi to have it made; or checkpoint: {to: s3://bucket/prefix}",
			"deploy.data.claim is missing: checkpoints must outlive a pod, and be where the next pod finds them")
	}
	if s.Monitor && !s.Network.Policy {
		r.find(r.at("deploy", "monitoring"), "deploy.monitoring", "leave network.policy on, and restrict further by policies of your own",
			"without a NetworkPolicy /metrics asks for the console's token, which the Prometheus operator is not given")
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	k := &cluster{renderer: r}
	k.config()
	k.volume()
	for _, one := range r.roles {
		k.role(one)
	}
	if s.Network.Policy {
		k.network()
	}
	if s.Monitor {
		k.monitoring()
	}
	k.kustomization()
	return k.files, errors.Join(k.errs...)
}

type cluster struct {
	*renderer
	files     []File
	resources []string
	configMap string
	errs      []error
}

// file writes objects into one file, in their order.
func (k *cluster) file(name string, objects ...any) {
	var text []string
	for _, o := range objects {
		one, err := manifest(o)
		if err != nil {
			k.errs = append(k.errs, fmt.Errorf("write %s: %w", name, err))
		}
		text = append(text, string(one))
	}
	k.files = append(k.files, File{name, []byte(strings.Join(text, "---\n"))})
	k.resources = append(k.resources, name)
}

// manifest writes an object without what it does not say: empty statuses and nulls would take fields from their
// owners in a server-side apply.
func manifest(o any) ([]byte, error) {
	data, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	delete(m, "status")
	return yaml.Marshal(prune(m))
}

func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, one := range v {
			if one == nil {
				delete(v, key)
			} else {
				v[key] = prune(one)
			}
		}
	case []any:
		for i := range v {
			v[i] = prune(v[i])
		}
	}
	return v
}

func (k *cluster) meta(name string, labels map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: k.settings.Namespace, Labels: labels}
}

// app is the name of everything of this pipeline.
func (k *cluster) app() string { return "hearthline-" + k.plan.Spec.Name }

// labels are the recommended ones (kubernetes.io/docs/concepts/overview/working-with-objects/common-labels).
func (k *cluster) labels(one *role) map[string]string {
	l := map[string]string{
		"app.kubernetes.io/name":       "hearthline",
		"app.kubernetes.io/instance":   k.plan.Spec.Name,
		"app.kubernetes.io/part-of":    k.app(),
		"app.kubernetes.io/managed-by": "hearthline",
	}
	if one != nil {
		l["app.kubernetes.io/component"] = one.name
	}
	return l
}

// selector picks the pods of a role, or with nil all of the pipeline. It must never change.
func (k *cluster) selector(one *role) *metav1.LabelSelector {
	l := map[string]string{"app.kubernetes.io/name": "hearthline", "app.kubernetes.io/instance": k.plan.Spec.Name}
	if one != nil {
		l["app.kubernetes.io/component"] = one.name
	}
	return &metav1.LabelSelector{MatchLabels: l}
}

func (k *cluster) config() {
	if k.settings.Namespace != "" {
		k.file("namespace.yaml", &corev1.Namespace{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
			ObjectMeta: metav1.ObjectMeta{Name: k.settings.Namespace, Labels: map[string]string{
				"pod-security.kubernetes.io/enforce": "restricted",
			}},
		})
	}
	k.configMap = k.app() + "-" + hash(slices.Concat(k.plan.Spec.Source, k.plan.Spec.Lock))[:10]
	data := map[string]string{"pipeline.yaml": string(k.plan.Spec.Source)}
	if k.plan.Spec.Lock != nil {
		data[LockFile] = string(k.plan.Spec.Lock)
	}
	k.file("config.yaml",
		&corev1.ServiceAccount{
			TypeMeta:                     metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
			ObjectMeta:                   k.meta(k.app(), k.labels(nil)),
			AutomountServiceAccountToken: new(false),
		},
		&corev1.ConfigMap{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: k.meta(k.configMap, k.labels(nil)),
			Immutable:  new(true),
			Data:       data,
		})
}

// volume renders the claim when its size is said.
func (k *cluster) volume() {
	if k.settings.Data.Size == "" {
		return
	}
	claim := &corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: k.meta(k.settings.Data.Claim, k.labels(nil)),
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(k.settings.Data.Size)}},
		},
	}
	if k.settings.Data.Class != "" {
		claim.Spec.StorageClassName = new(k.settings.Data.Class)
	}
	k.file("data.yaml", claim)
}

func (k *cluster) kustomization() {
	var b strings.Builder
	b.WriteString("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n")
	for _, name := range k.resources {
		b.WriteString("- " + name + "\n")
	}
	k.files = append(k.files, File{"kustomization.yaml", []byte(b.String())})
}
