package pipeline

import (
	"slices"
	"strings"
	"time"
)

// Source is a Kafka topic that others write. Its messages become rows of the gateway's stream, each once.
type Source struct {
	Name    string
	Kafka   Kafka // Brokers, TLS and SASL of the cluster; those of the pipeline where it names none
	Topic   string
	Group   string // consumer group
	Begin   string // first or last
	Format  string // json, lines, senml or arrow
	Home    Place
	Device  Place
	Linger  time.Duration
	Foreign bool // it has brokers of its own
	Pos     Pos
}

// Place is where a name stands: in each row ("row"), in a message's key ("key"), or in a header ("header:NAME").
type Place string

// Header is the header's name, "" for other places.
func (p Place) Header() string {
	name, ok := strings.CutPrefix(string(p), "header:")
	if !ok {
		return ""
	}
	return name
}

// Places other than headers.
const (
	PlaceRow Place = "row"
	PlaceKey Place = "key"
)

// SourceDead is the stream of what sources could not read.
const SourceDead = gatewayNode + deadSuffix

func (d *decoder) source(e entry[sourceShape], spec *Spec) Source {
	g, path := e.Value, "sources."+e.Name
	s := Source{Name: e.Name, Kafka: spec.Kafka, Topic: g.Topic, Group: g.Group, Begin: g.Begin, Format: g.Format,
		Home: Place(g.Home), Device: Place(g.Device), Linger: g.Linger, Pos: e.Pos}
	if s.Group == "" {
		s.Group = spec.Name + ".source." + e.Name
	}
	if len(g.Brokers) > 0 {
		s.Foreign = true
		s.Kafka.Brokers, s.Kafka.TLS, s.Kafka.SASL = nil, g.TLS, g.SASL
		for _, m := range g.Brokers {
			for broker := range strings.SplitSeq(m.text, ",") {
				broker = strings.TrimSpace(broker)
				d.address(m.pos, path+".brokers", broker)
				s.Kafka.Brokers = append(s.Kafka.Brokers, broker)
			}
		}
	} else if g.TLS != nil || g.SASL != nil {
		d.find(nodeAt(g.At.of("tls")), path, "set brokers, or leave them out", "tls and sasl are of brokers of its own, and it names none")
	}
	one := func(key, value string, want ...string) {
		if !slices.Contains(want, value) {
			d.find(nodeAt(g.At.of(key)), path+"."+key, didYouMean(value, want), "%s is %q; want %s", key, clip(value), strings.Join(want, ", "))
		}
	}
	one("begin", s.Begin, "first", "last")
	one("format", s.Format, "json", "lines", "senml", "arrow")
	for key, p := range map[string]Place{"home": s.Home, "device": s.Device} {
		if p != PlaceRow && p != PlaceKey && p.Header() == "" {
			d.find(nodeAt(g.At.of(key)), path+"."+key, "write row, key or header:NAME", "%s is %q", key, clip(string(p)))
		}
	}
	d.betweenTimes(nodeAt(g.At.of("linger")), path+".linger", s.Linger, time.Millisecond, time.Minute)
	return s
}
