package deploy_test

import (
	"context"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/google/go-cmp/cmp"

	"hearthline/deploy"
	"hearthline/flow"
	"hearthline/pipeline"
)

var update = flag.Bool("update", false, "write the golden files anew")

// passing is a stage that hands its input on; keeping is a sink. What they do is no matter here.
type passing struct {
	output   string
	Registry string `yaml:"registry"`
}

func (p *passing) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	in.Retain()
	return []flow.Output{{To: p.output, Record: in}}, nil
}

// remote is a stage that runs in processes of its own.
type remote struct{ passing }

func (*remote) UseWorkers(flow.Workers) {}

type keeping struct {
	Address  string `yaml:"address"`
	User     string `yaml:"user"`
	Password string `yaml:"password"`
	URL      string `yaml:"url"`
}

func (*keeping) Write(context.Context, flow.Range, []arrow.Record) error { return nil }

type listening struct {
	MQTT string `yaml:"mqtt"`
	HTTP string `yaml:"http"`

	Connections int `yaml:"connections"` // sent away at 100 a second when it drains

	Peers meeting `yaml:"peers"`
}

type meeting struct {
	Listen      string `yaml:"listen"`
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	CA          string `yaml:"ca"`
}

func (l *listening) DrainMax() time.Duration {
	return time.Duration(l.Connections) * 10 * time.Millisecond
}

func catalog() pipeline.Catalog {
	stage := func(output string) func() flow.Stage { return func() flow.Stage { return &passing{output: output} } }
	sink := func() flow.Sink { return &keeping{} }
	return pipeline.Catalog{
		Stages: map[string]func() flow.Stage{"normalize": stage("clean"), "dedupe": stage("unique"), "enrich": stage("readings"),
			"features": stage("features"), "score": stage("scores"), "alert": stage("alerts"), "warm": func() flow.Stage { return &remote{passing{output: "warm"}} }},
		SQL: func(string, string, []string) func() flow.Stage {
			return func() flow.Stage { return &remote{passing{output: "out"}} }
		},
		Sinks:   map[string]func() flow.Sink{"clickhouse": sink, "parquet": sink, "webhook": sink},
		Gateway: func() any { return &listening{} },
	}
}

// planOf reads a text as `render` does: with variables that this machine may have, and must not show.
func planOf(t *testing.T, name, text string) *pipeline.Plan {
	t.Helper()
	env := func(name string) (string, bool) {
		return map[string]string{"ALERT_URL": "http://here", "HEARTHLINE_KAFKA": "10.9.8.7:6543"}[name], true
	}
	spec, findings := pipeline.ReadBytes(name, []byte(text), env)
	plan, more := pipeline.NewPlan(context.Background(), spec, catalog())
	if plan == nil {
		t.Fatalf("%s: %v %v", name, findings, more)
	}
	return plan
}

func fromFile(t *testing.T, name string) (*pipeline.Plan, *deploy.Settings) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	plan := planOf(t, name+".yaml", string(text))
	if name == "python" {
		plan.Spec.Lock = []byte("{\"what\": \"lint learnt\"}\n")
	}
	s, err := deploy.Read(plan.Spec)
	if err != nil {
		t.Fatal(err)
	}
	return plan, s
}

func TestGolden(t *testing.T) {
	cases := []struct {
		name, target string
		render       func(*pipeline.Plan, *deploy.Settings) ([]deploy.File, error)
	}{
		{"homes", "kubernetes", deploy.Kubernetes},
		{"homes", "compose", deploy.Compose},
		{"small", "compose", deploy.Compose},
		{"python", "kubernetes", deploy.Kubernetes},
		{"python", "compose", deploy.Compose},
		{"python", "image", func(p *pipeline.Plan, s *deploy.Settings) ([]deploy.File, error) {
			return deploy.Image(p, s, os.DirFS("testdata/python-stages"))
		}},
	}
	for _, c := range cases {
		t.Run(c.name+"-"+c.target, func(t *testing.T) {
			plan, s := fromFile(t, c.name)
			files, err := c.render(plan, s)
			if err != nil {
				t.Fatal(err)
			}
			again, _ := c.render(plan, s)
			if diff := cmp.Diff(files, again); diff != "" {
				t.Errorf("two renderings differ:\n%s", diff)
			}
			dir := filepath.Join("testdata", c.name+"-"+c.target)
			if *update {
				if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
					t.Fatal(err)
				}
			}
			var names []string
			for _, f := range files {
				names = append(names, f.Name)
				file := filepath.Join(dir, f.Name)
				if *update {
					if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(file, f.Data, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(file)
				if err != nil {
					t.Fatalf("%v; run the test with -update", err)
				}
				if diff := cmp.Diff(string(want), string(f.Data)); diff != "" {
					t.Errorf("%s (-want +got; if it is better so, run the test with -update):\n%s", file, diff)
				}
				for _, here := range []string{"http://here", "10.9.8.7"} {
					if strings.Contains(string(f.Data), here) {
						t.Errorf("%s holds what a variable is on the machine that renders: %s", f.Name, here)
					}
				}
			}
			err = fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() && !slices.Contains(names, name) {
					t.Errorf("%s/%s is not rendered any more", dir, name)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

const sound = `pipeline: p
kafka: {brokers: "${HEARTHLINE_KAFKA:-embedded}"}
gateway: {to: raw, settings: {mqtt: "${HEARTHLINE_MQTT:-127.0.0.1:8883}"}}
stages:
  normalize: {from: raw, to: clean}
  dedupe: {from: clean, to: unique}
together: [[normalize, dedupe]]
sinks: {parquet: {from: unique}}
`

var secured = strings.Replace(sound, `-embedded}"}`, `-embedded}", tls: {ca: /etc/kafka/ca.pem}, sasl: {mechanism: PLAIN, user: u, password_env: KAFKA_PASSWORD}}`, 1)

// several is what more than one gateway needs to reach each other.
var several = strings.Replace(sound, `127.0.0.1:8883}"}`, `127.0.0.1:8883}", peers: {listen: "${PEERS:-}", certificate: /etc/peers/tls.crt, key: /etc/peers/tls.key, ca: /etc/peers/ca.crt}}`, 1)

// abroad has a source on a cluster of its own, which asks for a login.
var abroad = strings.Replace(sound, "stages:", `sources:
  away: {topic: t, brokers: "there:9093", tls: {ca: /etc/away/ca.pem}, sasl: {mechanism: PLAIN, user: u, password_env: AWAY_PASSWORD}}
stages:`, 1)

// Checkpoints in a bucket need no volume, and the way to the server.
func TestCheckpointsInABucket(t *testing.T) {
	for want, s3 := range map[string]string{"port: 9443": "s3: {endpoint: \"https://minio.example.com:9443\"}", "port: 443\n": ""} {
		plan := planOf(t, "p.yaml", "checkpoint: {to: s3://bucket/state, "+s3+"}\n"+sound+"deploy: {image: h:1, env: {HEARTHLINE_KAFKA: \"k:9092\"}}")
		s, err := deploy.Read(plan.Spec)
		if err != nil {
			t.Fatal(err)
		}
		files, err := deploy.Kubernetes(plan, s)
		if err != nil {
			t.Fatal(err)
		}
		all := ""
		for _, f := range files {
			all += string(f.Data)
		}
		if strings.Contains(all, "persistentVolumeClaim") || !strings.Contains(all, want) {
			t.Errorf("there is a claim, or no way to the server (%s)", want)
		}
	}
}

// A gateway is not killed while it still sends its clients away.
func TestGatewayHasTheTimeItsDrainTakes(t *testing.T) {
	text := strings.Replace(sound, `127.0.0.1:8883}"}`, `127.0.0.1:8883}", connections: 20000}`, 1) + "deploy: {image: h:1, data: {claim: c}, env: {HEARTHLINE_KAFKA: \"k:9092\", HEARTHLINE_MQTT: \"0.0.0.0:8883\"}}"
	plan := planOf(t, "p.yaml", text)
	s, err := deploy.Read(plan.Spec)
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string][]string{"kubernetes": {"terminationGracePeriodSeconds: 215", "terminationGracePeriodSeconds: 60"}, "compose": {"stop_grace_period: 210s", "stop_grace_period: 60s"}} {
		render := map[string]func(*pipeline.Plan, *deploy.Settings) ([]deploy.File, error){"kubernetes": deploy.Kubernetes, "compose": deploy.Compose}[target]
		files, err := render(plan, s)
		if err != nil {
			t.Fatal(err)
		}
		all := ""
		for _, f := range files {
			all += string(f.Data)
		}
		for _, w := range want {
			if !strings.Contains(all, w) {
				t.Errorf("%s: no %s", target, w)
			}
		}
	}
}

// What cannot run elsewhere is said with its place, not rendered.
func TestFindings(t *testing.T) {
	const good = "image: h:1, data: {claim: c}, env: {HEARTHLINE_KAFKA: \"k:9092\"}"
	cases := []struct{ name, text, want string }{
		{"good", sound + "deploy: {" + good + "}", ""},
		{"nothing said", sound, `1:1: deploy.data.claim is missing: checkpoints must outlive a pod, and be where the next pod finds them; write deploy: {data: {claim: NAME}}, with size: 20Gi to have it made; or checkpoint: {to: s3://bucket/prefix}
1:1: deploy.image is missing; write deploy: {image: REGISTRY/hearthline@sha256:…}
2:19: kafka.brokers is embedded, which only ` + "`hearthline up`" + ` starts; add deploy.env.HEARTHLINE_KAFKA with its address`},
		{"in a bucket", "checkpoint: {to: \"${STATE:-}\"}\n" + sound + "deploy: {image: h:1, env: {HEARTHLINE_KAFKA: \"k:9092\", STATE: \"s3://bucket/state\"}}", ""},
		{"in no bucket", "checkpoint: {to: \"${STATE:-s3://bucket/state}\"}\n" + sound + "deploy: {image: h:1, env: {HEARTHLINE_KAFKA: \"k:9092\", STATE: /state}}",
			`10:9: deploy.data.claim is missing: checkpoints must outlive a pod, and be where the next pod finds them; write deploy: {data: {claim: NAME}}, with size: 20Gi to have it made; or checkpoint: {to: s3://bucket/prefix}`},
		{"no image for stages in Python", strings.Replace(strings.Replace(sound, "together:", "  warm: {from: unique, to: warm}\ntogether:", 1), "from: unique}}", "from: [unique, warm]}}", 1) + "deploy: {" + good + "}",
			"10:9: deploy.stages_image is missing: warm runs stages in Python or SQL; build it from what `hearthline render image` writes, and write deploy: {stages_image: REGISTRY/hearthline-stages@sha256:…}"},
		{"misspelt", sound + "deploy: {imgae: h:1}", `9:10: unknown key "imgae"; did you mean image?`},
		{"unknown node", sound + "deploy: {" + good + ", nodes: {parket: {replicas: 2}}}", `9:83: there is no node "parket"; known: gateway, normalize, dedupe, parquet`},
		{"two of a unit", sound + "deploy: {" + good + ", nodes: {normalize: {replicas: 2}, dedupe: {replicas: 1}}}", `9:83: normalize runs together with dedupe; say it of one of them`},
		{"more than partitions", sound + "deploy: {" + good + ", nodes: {dedupe: {replicas: 5}}}", `9:83: normalize+dedupe may have 5 replicas, but streams have 4 partitions: the rest would idle; ask for fewer, or raise partitions before there is data`},
		{"loopback", strings.Replace(sound, `"${HEARTHLINE_MQTT:-127.0.0.1:8883}"`, "127.0.0.1:8883", 1) + "deploy: {" + good + "}",
			`3:37: gateway.settings.mqtt is 127.0.0.1:8883, which nobody outside the container reaches; write ${HEARTHLINE_MQTT:-127.0.0.1:8883}`},
		{"no value", strings.Replace(sound, `parquet: {from: unique}`, `parquet: {from: unique, settings: {url: "${URL}"}}`, 1) + "deploy: {" + good + "}",
			`8:50: the variable URL has no value; add deploy.env.URL, as a text or as {secret: NAME, key: KEY}`},
		{"a password that nobody gives", secured + "deploy: {" + good + ", defaults: {mounts: [{secret: s, at: /etc/kafka}]}}",
			`2:87: the variable KAFKA_PASSWORD has no value for gateway; add deploy.env.KAFKA_PASSWORD: {secret: NAME, key: KEY}`},
		{"a password as text", secured + "deploy: {" + strings.Replace(good, "env: {", "env: {KAFKA_PASSWORD: hush, ", 1) + ", defaults: {mounts: [{secret: s, at: /etc/kafka}]}}",
			`2:87: the variable KAFKA_PASSWORD holds a password, and stands in the file as text; add deploy.env.KAFKA_PASSWORD: {secret: NAME, key: KEY}`},
		{"files that are not mounted", secured + "deploy: {" + strings.Replace(good, "env: {", "env: {KAFKA_PASSWORD: {secret: s, key: k}, ", 1) + ", nodes: {gateway: {mounts: [{secret: s, at: /etc/kafka}]}}}",
			`2:56: no mount of normalize+dedupe holds /etc/kafka/ca.pem (kafka.tls.ca); add to deploy.defaults.mounts: {secret: NAME, at: /etc/kafka}`},
		{"all of it", secured + "deploy: {" + strings.Replace(good, "env: {", "env: {KAFKA_PASSWORD: {secret: s, key: k}, ", 1) + ", defaults: {mounts: [{secret: s, at: /etc/kafka}]}}", ""},
		{"gateways that do not reach each other", sound + "deploy: {" + good + ", nodes: {gateway: {replicas: 2}}}",
			`3:1: there may be 2 gateways, and they do not reach each other: commands and messages would not come to the clients of another; write peers: {listen: "${HEARTHLINE_PEERS:-}", certificate: …, key: …, ca: …}, and deploy.env.HEARTHLINE_PEERS: 0.0.0.0:8884`},
		{"gateways that may become several", several + "deploy: {" + good + ", nodes: {gateway: {autoscale: {min: 1, max: 9}}}}",
			`3:75: there may be 9 gateways, and they do not reach each other: commands and messages would not come to the clients of another; write peers: {listen: "${HEARTHLINE_PEERS:-}", certificate: …, key: …, ca: …}, and deploy.env.HEARTHLINE_PEERS: 0.0.0.0:8884`},
		{"gateways on loopback", several + "deploy: {" + strings.Replace(good, "env: {", "env: {PEERS: \"127.0.0.1:8884\", ", 1) + ", nodes: {gateway: {replicas: 2}}}",
			`3:83: gateway.settings.peers.listen is 127.0.0.1:8884, which no other gateway reaches; write 0.0.0.0:8884`},
		{"gateways without certificates", several + "deploy: {" + strings.Replace(good, "env: {", "env: {PEERS: \":8884\", ", 1) + ", nodes: {gateway: {replicas: 2}}}",
			`3:105: no mount of gateway holds /etc/peers/tls.crt (gateway.settings.peers.certificate); add to deploy.nodes.gateway.mounts: {secret: NAME, at: /etc/peers}
3:138: no mount of gateway holds /etc/peers/tls.key (gateway.settings.peers.key); add to deploy.nodes.gateway.mounts: {secret: NAME, at: /etc/peers}
3:163: no mount of gateway holds /etc/peers/ca.crt (gateway.settings.peers.ca); add to deploy.nodes.gateway.mounts: {secret: NAME, at: /etc/peers}`},
		{"gateways that reach each other", several + "deploy: {" + strings.Replace(good, "env: {", "env: {PEERS: \":8884\", ", 1) + ", nodes: {gateway: {replicas: 2, mounts: [{secret: s, at: /etc/peers}]}}}", ""},
		{"a source without password and files", abroad + "deploy: {" + good + "}",
			`5:3: no mount of away holds /etc/away/ca.pem (sources.away.tls.ca); add to deploy.nodes.away.mounts: {secret: NAME, at: /etc/away}
5:3: the variable AWAY_PASSWORD has no value for away; add deploy.env.AWAY_PASSWORD: {secret: NAME, key: KEY}`},
		{"a source with both", abroad + "deploy: {" + good + ", nodes: {away: {env: {AWAY_PASSWORD: {secret: s, key: k}}, mounts: [{secret: s, at: /etc/away}]}}}", ""},
		{"metrics behind a token", sound + "deploy: {" + good + ", network: {policy: false}, monitoring: true}",
			`9:101: without a NetworkPolicy /metrics asks for the console's token, which the Prometheus operator is not given; leave network.policy on, and restrict further by policies of your own`},
		{"bad values", sound + `deploy:
  image: "No Image"
  env: {A: {secret: s}, "b-c": x}
  data: {size: 5 apples}
  defaults: {cpu: fast, memory: 1Mi, grace: 1s}
  nodes:
    gateway: {service: Ingress, autoscale: {with: magic, max: 1}, mounts: [{secret: s, at: /tmp}]}
`, `11:12: want a text, {secret: NAME, key: KEY} or {config: NAME, key: KEY}
12:3: claim is missing; size and class are the claim's
13:19: cpu is "fast"; write a quantity such as 500m or 512Mi
13:33: memory is 1Mi; a role needs 32Mi at least
13:45: grace is 1s; want whole seconds, 20s to 1h: a role finishes what it has in hand
15:51: with is "magic"; want hpa or keda
15:92: at: /tmp is taken; mount into a folder of its own, such as /etc/hearthline/tls`},
	}
	for _, c := range cases {
		plan := planOf(t, "p.yaml", c.text)
		s, err := deploy.Read(plan.Spec)
		if err == nil {
			_, err = deploy.Kubernetes(plan, s)
		}
		got := ""
		if err != nil {
			got = strings.ReplaceAll(err.Error(), "p.yaml:", "")
		}
		lines := strings.Split(got, "\n")
		slices.Sort(lines)
		want := strings.Split(c.want, "\n")
		slices.Sort(want)
		if diff := cmp.Diff(want, lines); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// TestNoImageWithoutStages: a plan without stages in Python or SQL keeps the static image.
func TestNoImageWithoutStages(t *testing.T) {
	plan, s := fromFile(t, "small")
	if files, err := deploy.Image(plan, s, os.DirFS("testdata/python-stages")); err == nil || len(files) > 0 || !strings.Contains(err.Error(), "there is no other image to build") {
		t.Errorf("%d files, %v", len(files), err)
	}
}
