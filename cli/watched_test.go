package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"

	"hearthline/cli/clitest"
	"hearthline/deploy/promtest"
)

// watched are the metrics of a process: by name as a query knows it, the values of each label.
type watched map[string]map[string]map[string]bool

// scraped are labels that Prometheus adds to what it scrapes.
var scraped = []string{"instance", "job", "namespace", "pod"}

func newWatched(families map[string]*dto.MetricFamily) watched {
	w := watched{}
	for name, f := range families {
		names := []string{name}
		if f.GetType() == dto.MetricType_HISTOGRAM {
			names = []string{name + "_bucket", name + "_sum", name + "_count"}
		}
		for _, n := range names {
			w[n] = map[string]map[string]bool{}
			if strings.HasSuffix(n, "_bucket") {
				w[n]["le"] = map[string]bool{}
			}
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					if w[n][l.GetName()] == nil {
						w[n][l.GetName()] = map[string]bool{}
					}
					w[n][l.GetName()][l.GetValue()] = true
				}
			}
		}
	}
	return w
}

// labelled says whether a metric has a label.
func (w watched) labelled(metric, label string) bool {
	return w[metric][label] != nil || slices.Contains(scraped, label)
}

// missing says what a query asks for that is not there.
func (w watched) missing(query string) (problems []string) {
	say := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	expr, err := promtest.Language.ParseExpr(query)
	if err != nil {
		return []string{err.Error()}
	}
	grouped := func(under parser.Node, by []string) {
		for _, label := range by {
			found := false
			parser.Inspect(under, func(n parser.Node, _ []parser.Node) error {
				if s, ok := n.(*parser.VectorSelector); ok && w.labelled(s.Name, label) {
					found = true
				}
				return nil
			})
			if !found {
				say("nothing in %s has a label %s", under, label)
			}
		}
	}
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.AggregateExpr:
			grouped(n.Expr, n.Grouping)
		case *parser.BinaryExpr:
			if n.VectorMatching != nil && n.VectorMatching.On {
				grouped(n.LHS, n.VectorMatching.MatchingLabels)
				grouped(n.RHS, n.VectorMatching.MatchingLabels)
			}
		case *parser.VectorSelector:
			if w[n.Name] == nil {
				say("there is no metric %s", n.Name)
				return nil
			}
			for _, m := range n.LabelMatchers {
				if m.Name == model.MetricNameLabel {
					continue
				}
				if !w.labelled(n.Name, m.Name) {
					say("%s has no label %s", n.Name, m.Name)
				} else if values := slices.Collect(maps.Keys(w[n.Name][m.Name])); len(values) > 0 && m.Type == labels.MatchEqual && !slices.Contains(values, m.Value) {
					say("no %s of %s is %q; there are %v", m.Name, n.Name, m.Value, values)
				} else if m.Type == labels.MatchRegexp && len(values) > 0 {
					for one := range strings.SplitSeq(m.Value, "|") { // lists of names are written so; each must be one
						if re := regexp.MustCompile("^(?:" + one + ")$"); !slices.ContainsFunc(values, re.MatchString) {
							say("no %s of %s matches %q; there are %v", m.Name, n.Name, one, values)
						}
					}
				}
			}
		}
		return nil
	})
	return problems
}

// twoPods are half an hour of what a process tells, of two that tell the same, as Prometheus has it of a cluster.
func twoPods(families map[string]*dto.MetricFamily) (all []promql.Series) {
	for name, f := range families {
		for _, m := range f.GetMetric() {
			add := func(name string, v float64, more ...string) {
				for _, pod := range []string{"homes-gateway-a", "homes-gateway-b"} {
					said := []string{model.MetricNameLabel, name, "pod", pod, "instance", pod + ":9600", "job", "hearthline/hearthline-homes", "namespace", "hearthline"}
					for _, l := range m.GetLabel() {
						said = append(said, l.GetName(), l.GetValue())
					}
					s := promql.Series{Metric: labels.FromStrings(append(said, more...)...)}
					for at := time.Duration(0); at <= 30*time.Minute; at += promtest.Step {
						s.Floats = append(s.Floats, promql.FPoint{T: at.Milliseconds(), F: v})
					}
					all = append(all, s)
				}
			}
			if h := m.GetHistogram(); h != nil {
				for _, b := range h.GetBucket() {
					add(name+"_bucket", float64(b.GetCumulativeCount()), "le", strconv.FormatFloat(b.GetUpperBound(), 'g', -1, 64))
				}
				add(name+"_sum", h.GetSampleSum())
				add(name+"_count", float64(h.GetSampleCount()))
				continue
			}
			add(name, m.GetGauge().GetValue()+m.GetCounter().GetValue()+m.GetUntyped().GetValue())
		}
	}
	return all
}

// queries of the dashboard and the alerts, by where they stand. What Grafana puts in for variables is put in.
func queries(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	text, err := os.ReadFile("../deploy/monitoring/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		for i, target := range p.Targets {
			found[fmt.Sprintf("panel %s, %d", p.Title, i)] = strings.NewReplacer("$__rate_interval", "1m", "$namespace", ".*").Replace(target.Expr)
		}
	}
	if text, err = os.ReadFile("../deploy/monitoring/alerts.yaml"); err != nil {
		t.Fatal(err)
	}
	var alerts struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(text, &alerts); err != nil {
		t.Fatal(err)
	}
	for _, g := range alerts.Groups {
		for _, r := range g.Rules {
			found["alert "+r.Alert] = r.Expr
		}
	}
	return found
}

// What the dashboard shows and the alerts look at is what the product tells: every metric, every label, every value that is named. And what
// it tells is explained, and labelled by names of the plan and of lists in the code alone. Prometheus answers each query where several processes
// tell the same.
func TestTheDashboardAsksForWhatIsThere(t *testing.T) {
	i := clitest.New(t)
	up := i.Up("--gateways", "2", "--homes", "2")
	var w watched
	var families map[string]*dto.MetricFamily
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		res, err := http.Get("http://" + i.Console + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		p := expfmt.NewTextParser(model.LegacyValidation)
		families, err = p.TextToMetricFamilies(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if w = newWatched(families); w["hearthline_rows_total"]["node"]["clickhouse"] {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no row has come to ClickHouse")
		}
	}
	up.Stop()
	asked := queries(t)
	if len(asked) < 60 {
		t.Errorf("%d queries; the dashboard or the alerts were not read", len(asked))
	}
	series := twoPods(families)
	for where, query := range asked {
		for _, problem := range w.missing(query) {
			t.Errorf("%s: %s\n%s", where, problem, query)
		}
		v, err := promtest.Ask(t.Context(), query, time.Unix(1800, 0), series)
		if err != nil {
			t.Errorf("%s: %v", where, err)
		} else if v, ok := v.(promql.Vector); strings.HasPrefix(where, "panel") && !strings.Contains(query, " > 0") && ok && len(v) == 0 {
			t.Errorf("%s is empty: %s", where, query)
		}
	}
	for name, f := range families {
		if !strings.HasPrefix(name, "hearthline_") {
			continue
		}
		if f.GetHelp() == "" {
			t.Errorf("%s is not explained", name)
		}
		if n := len(f.GetMetric()); n > 200 {
			t.Errorf("%s has %d series", name, n)
		}
	}
	// That the checks can fail:
	if _, err := promtest.Ask(t.Context(), "hearthline_gateway_peers_known - on (namespace) hearthline_gateway_peers_connected", time.Unix(1800, 0), series); err == nil {
		t.Error("a query whose sides do not match each other one to one is answered")
	}
	for _, c := range []struct{ query, says string }{
		{"hearthline_gateway_conections", "no metric"}, {"hearthline_ready{home=\"h1\"}", "no label home"},
		{`hearthline_gateway_commands_total{state="excuted"}`, `"excuted"`}, {`hearthline_gateway_refused_total{reason=~"quota|qouta"}`, `"qouta"`},
		{"sum by (hub) (hearthline_gateway_connections)", "label hub"}, {"sum(hearthline_ready", "parse error"},
		{"hearthline_gateway_peers_known > on (gatway) hearthline_gateway_peers_connected", "label gatway"},
	} {
		if got := strings.Join(w.missing(c.query), "; "); !strings.Contains(got, c.says) {
			t.Errorf("%s: %q; want %q", c.query, got, c.says)
		}
	}
}
