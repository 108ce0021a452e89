package deploy

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// network lets the pods be reached at the gateway's doors and, within the cluster, at the ops port; and lets them
// reach DNS and the ports of the addresses they were given. All else is refused.
func (k *cluster) network() {
	tcp := func(number int32) networkingv1.NetworkPolicyPort {
		return networkingv1.NetworkPolicyPort{Protocol: new(corev1.ProtocolTCP), Port: new(intstr.FromInt32(number))}
	}
	udp := networkingv1.NetworkPolicyPort{Protocol: new(corev1.ProtocolUDP), Port: new(intstr.FromInt32(53))}
	anyPod := []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{}}}

	all := networkingv1.NetworkPolicySpec{
		PodSelector: *k.selector(nil),
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
		Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: anyPod, Ports: []networkingv1.NetworkPolicyPort{tcp(opsPort)}}},
		Egress:      []networkingv1.NetworkPolicyEgressRule{{Ports: []networkingv1.NetworkPolicyPort{udp, tcp(53)}}},
	}
	if ports := k.egress(); len(ports) > 0 {
		rule := networkingv1.NetworkPolicyEgressRule{}
		for _, p := range ports {
			rule.Ports = append(rule.Ports, tcp(p))
		}
		all.Egress = append(all.Egress, rule)
	}
	gateway := k.roles[0]
	doors := networkingv1.NetworkPolicyIngressRule{}
	for _, p := range gateway.ports {
		doors.Ports = append(doors.Ports, tcp(p.number))
	}
	only := networkingv1.NetworkPolicySpec{
		PodSelector: *k.selector(gateway),
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		Ingress:     []networkingv1.NetworkPolicyIngressRule{doors},
	}
	if p := gateway.peers; p != nil { // gateways alone, each to all others
		ports, gateways := []networkingv1.NetworkPolicyPort{tcp(p.number)}, []networkingv1.NetworkPolicyPeer{{PodSelector: k.selector(gateway)}}
		only.Ingress = append(only.Ingress, networkingv1.NetworkPolicyIngressRule{From: gateways, Ports: ports})
		only.Egress = []networkingv1.NetworkPolicyEgressRule{{To: gateways, Ports: ports}}
		only.PolicyTypes = append(only.PolicyTypes, networkingv1.PolicyTypeEgress)
	}
	kind := metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}
	k.file("network.yaml",
		&networkingv1.NetworkPolicy{TypeMeta: kind, ObjectMeta: k.meta(k.app(), k.labels(nil)), Spec: all},
		&networkingv1.NetworkPolicy{TypeMeta: kind, ObjectMeta: k.meta(k.object(gateway), k.labels(gateway)), Spec: only})
}
