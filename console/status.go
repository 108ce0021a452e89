package console

import (
	"math"
	"slices"

	"hearthline/flow"
	"hearthline/pipeline/run"
)

// Status is what the page shows, at one moment.
type Status struct {
	At        flow.Micros    `json:"at"`
	Pipeline  string         `json:"pipeline"`
	Live      string         `json:"live"`  // "" or why not
	Ready     string         `json:"ready"` // "" or why not
	Verdict   Verdict        `json:"verdict"`
	Nodes     []NodeView     `json:"nodes"`
	Streams   []StreamView   `json:"streams"`
	Edges     []EdgeView     `json:"edges"`
	Numbers   []Number       `json:"numbers"`
	Agreement []Agreement    `json:"agreement"`
	Alerts    []AlertView    `json:"alerts"`
	Problems  []Problem      `json:"problems"` // what this status could not find out
	History   []StreamSeries `json:"history,omitempty"`
}

// NodeView is a node with what it does now.
type NodeView struct {
	run.NodeStatus
	InRate  float64 `json:"in_rate"`  // rows a second, over the last seconds
	OutRate float64 `json:"out_rate"` // rows a second
	BadRate float64 `json:"bad_rate"` // rows a second
	// Retrying and Restarting count the last minute.
	Retrying   int64 `json:"retrying"`
	Restarting int64 `json:"restarting"`
}

// StreamView is what its writer puts on a stream; where the writer runs elsewhere, what its fastest reader takes.
type StreamView struct {
	Name string  `json:"name"`
	Rate float64 `json:"rate"` // rows a second
	Rows int64   `json:"rows"` // since this process began
}

// EdgeView is a stream on its way to one reader.
type EdgeView struct {
	Stream  string  `json:"stream"`
	Reader  string  `json:"reader"`
	Rate    float64 `json:"rate"` // rows a second that the reader takes
	Rows    int64   `json:"rows"`
	Batches int64   `json:"batches"`
	State   string  `json:"state"`    // ok, slow (falls behind), stuck (does not move), idle
	Lag     int64   `json:"lag"`      // messages of all partitions; -1 unknown
	LagRise float64 `json:"lag_rise"` // messages a second; negative while it catches up
	Lags    []int64 `json:"lags"`     // by partition
	// WatermarkAge is how far the reader is behind now, in seconds, on the partition where it is furthest; -1 unknown.
	WatermarkAge float64 `json:"watermark_age"`
	Partition    int32   `json:"partition"` // the one that holds it up most; -1 where none does
	StillFor     float64 `json:"still_for"` // seconds that Partition has not moved though rows wait
}

// StreamSeries is a stream's rate in the last minute, one number a second, the newest last.
type StreamSeries struct {
	Stream string    `json:"stream"`
	Rates  []float64 `json:"rates"`
}

// Number is something worth counting: rows acknowledged, rows in ClickHouse, Parquet files.
type Number struct {
	Label string `json:"label"`
	Value int64  `json:"value"`
	Unit  string `json:"unit,omitempty"`
	Note  string `json:"note,omitempty"`
	// Same joins numbers that count the same rows at different places, such as "readings". Those that flow are a
	// little apart; once all is drained they are equal.
	Same string `json:"same,omitempty"`
}

// Agreement says whether the numbers of one Same are equal.
type Agreement struct {
	Same   string `json:"same"`
	Equal  bool   `json:"equal"`
	Spread int64  `json:"spread"` // the largest less the smallest
}

// Alert is a row of the alerts stream. Start is when it began to fire.
type Alert struct {
	Time, Started           flow.Micros
	Home, Device, Metric    string
	State, Severity         string // firing or resolved; as the alert stage says
	Score, Value, Threshold float64
}

// AlertView is an Alert as JSON: what is no number is null.
type AlertView struct {
	Time      flow.Micros `json:"time"`
	Started   flow.Micros `json:"started"`
	Home      string      `json:"home"`
	Device    string      `json:"device"`
	Metric    string      `json:"metric"`
	State     string      `json:"state"`
	Severity  string      `json:"severity"`
	Score     *float64    `json:"score"`
	Value     *float64    `json:"value"`
	Threshold *float64    `json:"threshold"`
}

func (a Alert) view() AlertView {
	return AlertView{
		Time: a.Time, Started: a.Started, Home: a.Home, Device: a.Device, Metric: a.Metric, State: a.State,
		Severity: a.Severity, Score: finite(a.Score), Value: finite(a.Value), Threshold: finite(a.Threshold),
	}
}

func finite(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}

// Problem is a question that got no answer.
type Problem struct {
	What  string `json:"what"` // lag, numbers or alerts
	Error string `json:"error"`
}

// Link is another place to look at: ClickHouse's own page, Grafana, the gateway's address.
type Link struct {
	Name string `json:"name"`
	URL  string `json:"url"`
	User string `json:"user,omitempty"`
	Note string `json:"note,omitempty"` // where to find the password, say
}

// Query is ready to be pasted.
type Query struct {
	Title string `json:"title"`
	SQL   string `json:"sql"`
}

// agreements compares the numbers that should be equal, in the order in which they come.
func agreements(numbers []Number) []Agreement {
	out := []Agreement{}
	for i, n := range numbers {
		if n.Same == "" || slices.ContainsFunc(numbers[:i], func(o Number) bool { return o.Same == n.Same }) {
			continue
		}
		low, high, members := n.Value, n.Value, 0
		for _, o := range numbers {
			if o.Same == n.Same {
				low, high, members = min(low, o.Value), max(high, o.Value), members+1
			}
		}
		if members > 1 {
			out = append(out, Agreement{Same: n.Same, Equal: low == high, Spread: high - low})
		}
	}
	return out
}
