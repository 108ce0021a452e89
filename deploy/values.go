package deploy

import (
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"

	"hearthline/pipeline"
)

// Services of the profile infra, which Compose can start beside the pipeline.
const (
	kafkaService      = "kafka"
	clickhouseService = "clickhouse"
)

// variables decides what every variable of pipeline.yaml is, where it runs.
func (r *renderer) variables() {
	r.env = maps.Clone(r.settings.Env)
	if r.env == nil {
		r.env = map[string]Value{}
	}
	// What the container itself decides.
	own := map[string]bool{"HEARTHLINE_DATA": true, "HEARTHLINE_PIPELINE": true, "HEARTHLINE_OPS": true, "HEARTHLINE_OPEN_METRICS": true, "HEARTHLINE_ADDRESS": true}
	brokers := false
	for _, use := range r.plan.Spec.Env {
		brokers = brokers || strings.HasPrefix(use.Path, "kafka.brokers")
		_, given := r.env[use.Name]
		switch {
		case given || own[use.Name] || use.Path == "deploy" || strings.HasPrefix(use.Path, "deploy.") || strings.HasPrefix(use.Path, "console."):
		case use.HasDefault && use.Default == "embedded" && r.target == "compose":
			r.env[use.Name] = Value{Text: infraAddress(use.Path)}
		case use.HasDefault && use.Default == "embedded":
			r.find(use.Pos, use.Path, "add deploy.env."+use.Name+" with its address", "%s is embedded, which only `hearthline up` starts", use.Path)
		case use.HasDefault && strings.HasPrefix(use.Path, "gateway.settings."):
			if host, _, ok := hostPort(use.Default); ok && loopback(host) {
				r.env[use.Name] = Value{Text: strings.TrimPrefix(use.Default, host)}
			}
		case !use.HasDefault && r.target == "compose":
			r.env[use.Name] = Value{Secret: "env", Key: use.Name} // from the shell or the file .env
		case !use.HasDefault:
			r.find(use.Pos, use.Path, "add deploy.env."+use.Name+", as a text or as {secret: NAME, key: KEY}", "the variable %s has no value", use.Name)
		}
	}
	if !brokers && len(r.plan.Spec.Kafka.Brokers) == 0 {
		r.find(r.plan.Spec.Kafka.Pos, "kafka.brokers", "write kafka: {brokers: \"${HEARTHLINE_KAFKA:-embedded}\"}", "the embedded broker runs with `hearthline up` alone")
	}
}

// infraAddress is where a service of the profile infra is.
func infraAddress(path string) string {
	if strings.HasPrefix(path, "kafka.brokers") {
		return kafkaService + ":9092"
	}
	return clickhouseService + ":9000"
}

// uses says whether a service of the profile infra is named by some variable.
func (r *renderer) uses(service string) bool {
	for _, v := range r.env {
		if v.Text == service+":9092" || v.Text == service+":9000" {
			return true
		}
	}
	return false
}

// envOf is what a role's environment holds beside what the container decides.
func (r *renderer) envOf(one *role) map[string]Value {
	env := maps.Clone(r.env)
	maps.Copy(env, one.run.Env)
	return env
}

// egress lists the TCP ports that the roles talk to: those of every address in their variables, and in the plan.
func (r *renderer) egress() []int32 {
	ports := slices.Clone(r.settings.Network.Egress)
	add := func(text string) {
		for one := range strings.SplitSeq(text, ",") {
			one = strings.TrimSpace(one)
			if u, err := url.Parse(one); err == nil && u.Host != "" {
				if one = u.Host; u.Port() == "" {
					one += map[string]string{"http": ":80", "https": ":443"}[u.Scheme]
				}
			}
			if host, number, ok := hostPort(one); ok && reached(host) && !slices.Contains(ports, number) {
				ports = append(ports, number)
			}
		}
	}
	if !r.varies("kafka.brokers") {
		for _, b := range r.plan.Spec.Kafka.Brokers {
			add(b)
		}
	}
	if r.checkpointsInBucket() {
		add(r.checkpointEndpoint())
	}
	for _, one := range r.roles {
		if one.source != nil && one.source.Foreign && !r.varies("sources."+one.node+".brokers") {
			for _, b := range one.source.Kafka.Brokers {
				add(b)
			}
		}
	}
	for _, one := range r.roles {
		for _, v := range r.envOf(one) {
			add(v.Text)
		}
	}
	slices.Sort(ports)
	return ports
}

// varies says whether a variable is part of a setting. Then its value here is none of the cluster's.
func (r *renderer) varies(path string) bool {
	return slices.ContainsFunc(r.plan.Spec.Env, func(u pipeline.EnvUse) bool { return strings.HasPrefix(u.Path, path) })
}

// reached says whether a host is one to talk to, rather than the addresses one listens on.
func reached(host string) bool {
	ip := net.ParseIP(host)
	return host != "" && !loopback(host) && (ip == nil || !ip.IsUnspecified())
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
