package deploy

import (
	"cmp"
	"fmt"
	"path"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"hearthline/pipeline"
)

// Images of what the pipeline needs and Hearthline is not, for the profile infra.
const (
	kafkaImage      = "apache/kafka:4.1.0"
	clickhouseImage = "clickhouse/clickhouse-server:25.8"
	defaultImage    = "hearthline:latest" // what `docker build` makes

	defaultStagesImage = "hearthline-stages:latest" // what `docker build` makes of `hearthline render image`
)

// Compose renders a compose.yaml for Docker Compose, 1.29 and 2 alike, with the pipeline.yaml it mounts. Services of
// the profile infra (Kafka, ClickHouse) start with `--profile infra` and are what the pipeline talks to unless
// deploy.env says otherwise. A value that comes from a Secret on a cluster comes from a variable of the shell, or of
// a file .env beside compose.yaml; .env.example lists them.
//
// The error is [Findings] when the plan cannot run so as it stands.
func Compose(plan *pipeline.Plan, s *Settings) ([]File, error) {
	r := newRenderer(plan, s, "compose")
	if err := r.err(); err != nil {
		return nil, err
	}
	c := &compose{renderer: r, services: map[string]any{}, volumes: map[string]any{}, wanted: map[string]string{}}
	for _, one := range r.roles {
		c.role(one)
	}
	c.infra()
	text, err := yaml.Marshal(map[string]any{"services": c.services, "volumes": c.volumes})
	if err != nil {
		return nil, fmt.Errorf("write compose.yaml: %w", err)
	}
	head := "# Made by `hearthline render compose` from pipeline.yaml; a change belongs there.\n"
	if len(c.services) > len(r.roles) {
		head += "# docker-compose --profile infra up -d    also starts Kafka or ClickHouse, where the pipeline names none.\n"
	}
	files := []File{{"compose.yaml", append([]byte(head), text...)}, {"pipeline.yaml", plan.Spec.Source}}
	if plan.Spec.Lock != nil {
		files = append(files, File{LockFile, plan.Spec.Lock})
	}
	if len(c.wanted) > 0 {
		var b strings.Builder
		b.WriteString("# Copy to .env and fill in; .env is not for version control.\n")
		for _, name := range sortedKeys(c.wanted) {
			fmt.Fprintf(&b, "# %s\n%s=\n", c.wanted[name], name)
		}
		files = append(files, File{".env.example", []byte(b.String())})
	}
	return files, nil
}

type compose struct {
	*renderer
	services, volumes map[string]any
	wanted            map[string]string // variables that the shell must have, and what for
}

func (c *compose) role(one *role) {
	image := cmp.Or(c.settings.Image, defaultImage)
	if one.workers {
		image = cmp.Or(c.settings.Stages, defaultStagesImage)
	}
	memory := resource.MustParse(one.run.Memory)
	service := map[string]any{
		"image":             image,
		"command":           one.args(),
		"restart":           "unless-stopped",
		"read_only":         true,
		"user":              fmt.Sprintf("%d:%d", userID, userID),
		"cap_drop":          []string{"ALL"},
		"security_opt":      []string{"no-new-privileges:true"},
		"tmpfs":             []string{"/tmp:size=256m,mode=1777"},
		"mem_limit":         memory.Value(),
		"stop_grace_period": fmt.Sprintf("%ds", one.run.Grace/time.Second),
		"environment":       c.environment(one),
		"volumes":           c.mounts(one),
		"healthcheck": map[string]any{
			"test": []string{"CMD", binary, "health"}, "interval": "10s", "timeout": "5s", "retries": 6, "start_period": "60s",
		},
		"logging": map[string]any{"driver": "json-file", "options": map[string]string{"max-size": "10m", "max-file": "3"}},
	}
	if n := one.run.Replicas; n > 1 && one.kind != "gateway" {
		service["scale"] = n // a gateway's ports can be published once
	}
	var ports []map[string]int32 // the short form, 22:22, is a number to some readers of YAML
	for _, p := range one.ports {
		ports = append(ports, map[string]int32{"target": p.number, "published": p.number})
	}
	if ports != nil {
		service["ports"] = ports
	}
	c.services[one.name] = service
}

func (c *compose) environment(one *role) map[string]string {
	env := map[string]string{}
	for name, v := range c.envOf(one) {
		if v.Secret == "" && v.Config == "" {
			env[name] = strings.ReplaceAll(v.Text, "$", "$$")
			continue
		}
		env[name] = fmt.Sprintf("${%s:?set it in the shell or in .env}", name)
		c.wanted[name] = "used by pipeline.yaml"
		if v.Secret != "env" {
			c.wanted[name] = fmt.Sprintf("on a cluster: key %s of %s", v.Key, v.Secret+v.Config)
		}
	}
	env["GOMEMLIMIT"] = one.memoryLimit()
	env["HEARTHLINE_DATA"] = dataDir
	if one.peers != nil {
		env["HEARTHLINE_ADDRESS"] = one.name
	}
	env["HEARTHLINE_LOG"] = "json"
	env["HEARTHLINE_OPEN_METRICS"] = "true" // the port is not published: the project's own containers reach it
	env["HEARTHLINE_OPS"] = fmt.Sprintf("0.0.0.0:%d", opsPort)
	env["HEARTHLINE_PIPELINE"] = path.Join(configDir, "pipeline.yaml")
	return env
}

// mounts are pipeline.yaml, the data and, for each Secret or ConfigMap of a cluster, a folder of its name.
func (c *compose) mounts(one *role) []string {
	c.volumes["data"] = map[string]any{}
	mounts := []string{"./pipeline.yaml:" + path.Join(configDir, "pipeline.yaml") + ":ro", "data:" + dataDir}
	if c.plan.Spec.Lock != nil {
		mounts = append(mounts, "./"+LockFile+":"+path.Join(configDir, LockFile)+":ro")
	}
	for _, m := range one.run.Mounts {
		mounts = append(mounts, fmt.Sprintf("./%s:%s:ro", m.Secret+m.Config, m.At))
	}
	return mounts
}

// infra adds the services of the profile infra that some variable names.
func (c *compose) infra() {
	check := func(test ...string) map[string]any {
		return map[string]any{"test": append([]string{"CMD"}, test...), "interval": "5s", "timeout": "5s", "retries": 20}
	}
	if c.uses(kafkaService) {
		c.volumes["kafka"] = map[string]any{}
		c.services[kafkaService] = map[string]any{
			"image": kafkaImage, "profiles": []string{"infra"}, "restart": "unless-stopped",
			"volumes": []string{"kafka:/var/lib/kafka/data"},
			"environment": map[string]string{
				"KAFKA_NODE_ID": "1", "KAFKA_PROCESS_ROLES": "broker,controller", "KAFKA_LOG_DIRS": "/var/lib/kafka/data",
				"KAFKA_LISTENERS":            "PLAINTEXT://:9092,CONTROLLER://:9093",
				"KAFKA_ADVERTISED_LISTENERS": "PLAINTEXT://" + kafkaService + ":9092", "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
				"KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
				"KAFKA_CONTROLLER_QUORUM_VOTERS":       "1@" + kafkaService + ":9093",
				// One broker: what is replicated elsewhere stands once.
				"KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1", "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
				"KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1", "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
			},
			"healthcheck": check("/opt/kafka/bin/kafka-broker-api-versions.sh", "--bootstrap-server", "localhost:9092"),
		}
	}
	if c.uses(clickhouseService) {
		c.volumes["clickhouse"] = map[string]any{}
		c.services[clickhouseService] = map[string]any{
			"image": clickhouseImage, "profiles": []string{"infra"}, "restart": "unless-stopped",
			"volumes": []string{"clickhouse:/var/lib/clickhouse"},
			// The port is not published: only the services of this file reach it.
			"environment": map[string]string{"CLICKHOUSE_SKIP_USER_SETUP": "1"},
			"healthcheck": check("clickhouse-client", "--query", "SELECT 1"),
			"ulimits":     map[string]any{"nofile": 262144},
		}
	}
}
