package cli

import (
	"context"
	"fmt"
	"mime"
	"slices"

	"github.com/spf13/cobra"

	"hearthline/flow"
	"hearthline/ingest/names"
	"hearthline/ingest/payload"
	"hearthline/pipeline"
	"hearthline/pipeline/run"
	"hearthline/streams"
)

func newSource(o *options) *cobra.Command {
	r := &role{options: o}
	return r.flags(&cobra.Command{
		Use:   "source NAME",
		Short: "Run one source: a Kafka topic of others → the gateway's stream",
		Long: `Reads a topic that others write, as JSON, SenML or Arrow, into the stream that the gateway writes: every
message once. What cannot be read goes to ` + pipeline.SourceDead + `. Several processes of it share the topic's partitions.
` + roleNote,
		Example: "  hearthline source partner",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			known := func(plan *pipeline.Plan) error {
				if !slices.ContainsFunc(plan.Spec.Sources, func(s pipeline.Source) bool { return s.Name == args[0] }) {
					return usagef("no source %q in %s", args[0], plan.Spec.File)
				}
				return nil
			}
			return r.run(cmd, known, func(ctx context.Context, p *process, ready *readiness) error {
				ready.set(alive, alive)
				return p.runSource(ctx, r.runner(p), args[0])
			})
		},
	})
}

// runSource reaches the cluster that holds the topic, and reads it until ctx ends.
func (p *process) runSource(ctx context.Context, r *run.Runner, name string) error {
	i := slices.IndexFunc(p.plan.Spec.Sources, func(s pipeline.Source) bool { return s.Name == name })
	var end func()
	from, err := retryUntil(ctx, p.log, "the brokers of "+name, func() (from *streams.Client, err error) {
		from, end, err = p.clusterOf(ctx, &p.plan.Spec.Sources[i])
		return from, err
	})
	if err != nil {
		return err
	}
	defer end()
	return r.Source(ctx, from, name, newSourceDecoder)
}

// sourceDecoder reads messages as the gateway reads payloads.
type sourceDecoder struct {
	node   *pipeline.Source
	format payload.Format
	payload.Decoder
}

var sourceFormats = map[string]payload.Format{"json": payload.FormatJSON, "lines": payload.FormatLines, "senml": payload.FormatSenML, "arrow": payload.FormatArrow}

func newSourceDecoder(node *pipeline.Source) run.Decoder {
	return &sourceDecoder{node: node, format: sourceFormats[node.Format]}
}

// sourceRowsMax is how many rows one message may hold.
const sourceRowsMax = 16_384

// Decode implements [run.Decoder]. A row that names no time has the message's.
func (d *sourceDecoder) Decode(m *streams.Record, received flow.Micros, add func(*flow.Event), refuse func(row int, reason string)) {
	s := payload.Scope{Now: received, RowsMax: sourceRowsMax}
	if !m.Time.IsZero() {
		// A message that waited for long keeps its time; one whose producer's clock runs ahead has none.
		if s.Time = flow.MicrosOf(m.Time); s.Time > received {
			s.Time = 0
		}
	}
	for _, at := range []struct {
		what  string
		place pipeline.Place
		to    *string
	}{{"home", d.node.Home, &s.Home}, {"device", d.node.Device, &s.Device}} {
		text, err := d.named(m, at.what, at.place)
		if err != nil {
			refuse(-1, err.Error())
			return
		}
		*at.to = text
	}
	f := d.format
	if media, ok := m.Header("content-type"); ok {
		kind, _, err := mime.ParseMediaType(string(media))
		known := false
		if f, known = payload.FormatOf(kind); err != nil || !known {
			refuse(-1, fmt.Sprintf("media: content type %.80q is not one that is read here", media))
			return
		}
	}
	rows, err := d.Decoder.Decode(f, m.Value, &s)
	if err != nil {
		refuse(-1, payload.Malformed(err).Error())
		return
	}
	for i := range rows {
		if r := rows[i].Refused; r != nil {
			refuse(i, r.Error())
			continue
		}
		e := rows[i].Event
		e.Received = received
		switch rows[i].Timing {
		case payload.TimeAbsent:
			e.Time = received
		case payload.TimeRelative:
			e.Time += received
		}
		add(&e)
	}
}

// named reads a name that stands beside the rows; "" where each row has it.
func (d *sourceDecoder) named(m *streams.Record, what string, at pipeline.Place) (string, error) {
	text := m.Key
	if at == pipeline.PlaceRow {
		return "", nil
	}
	if h := at.Header(); h != "" {
		text, _ = m.Header(h)
	}
	if why := names.Bad(string(text)); why != "" {
		return "", fmt.Errorf("%s: the message's %s, its %s, %s", what, at, what, why)
	}
	return string(text), nil
}
