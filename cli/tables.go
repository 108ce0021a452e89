package cli

import (
	"context"

	"hearthline/ingest"
	"hearthline/ingest/table"
	"hearthline/streams"
)

// tableLog is a table's log over a compacted stream of Kafka.
type tableLog struct {
	client   *streams.Client
	producer *streams.Producer
	stream   string
}

// Append implements table.Log.
func (l tableLog) Append(ctx context.Context, partition int32, records []table.Record) (int64, error) {
	notes := make([]streams.Note, len(records))
	for i, r := range records {
		notes[i] = streams.Note{Key: r.Key, Value: r.Value}
	}
	return l.producer.PublishNotes(ctx, l.stream, partition, notes...)
}

// Follow implements table.Log.
func (l tableLog) Follow(ctx context.Context, partition int32, take func(table.Read) error) error {
	return l.client.Follow(ctx, l.stream, partition, func(f streams.Followed) error {
		r := table.Read{Next: f.Next, End: f.End, Whole: f.Whole}
		for _, n := range f.Notes {
			r.Records = append(r.Records, table.Record{Key: n.Key, Value: n.Value, Offset: n.Offset})
		}
		return take(r)
	})
}

// tableStream is the stream that holds a table: the pipeline's own.
func (p *process) tableStream(name string) string { return p.plan.Spec.Name + "." + name }

// tablePartitions is how many partitions each table has, whatever the pipeline's streams have: a table outlives a change of
// theirs. Every gateway follows all of them.
const tablePartitions = 8

// ensureTables makes the streams that gateways share.
func (p *process) ensureTables(ctx context.Context) error {
	var specs []streams.Spec
	for _, name := range ingest.Tables {
		specs = append(specs, streams.Spec{Name: p.tableStream(name), Partitions: tablePartitions, Compacted: true, Rewritten: true})
	}
	return p.client.Ensure(ctx, specs)
}
