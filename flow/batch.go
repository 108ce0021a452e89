package flow

import (
	"fmt"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
)

// Batch is what travels on an edge: a record batch and what the runtime knows of it.
type Batch struct {
	Kind      Kind
	Lineage   Lineage
	Bounds    Bounds // event times of the rows; zero where there are none
	Watermark Micros // see Watermark below
	Run       string // of a KindEnd: which run ends here
	Trace     string // traceparent of the span that made it; "" where none was sampled. Nothing that is computed depends on it
	// Record holds the rows; nil unless Kind is KindRows. Whoever receives a batch releases its record.
	Record arrow.Record
}

// About Watermark. It is the arrival clock of the batch's producer: it promises that no later batch of this
// producer on this partition holds a row that a gateway received before it. It is monotone for a producer and
// a partition. It says nothing of event times: a hub that was offline may send last night's readings now.
// docs/decisions/0003 says why windows are closed by both.

// Kind says what a batch is.
type Kind uint8

const (
	KindRows      Kind = iota // a record batch
	KindHeartbeat             // no rows: only time passes
	KindEnd                   // no rows: the producer's run (Run) has given all it will give
)

func (k Kind) String() string {
	switch k {
	case KindRows:
		return "rows"
	case KindHeartbeat:
		return "heartbeat"
	case KindEnd:
		return "end"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Rows is the number of rows of b.
func (b *Batch) Rows() int64 {
	if b.Record == nil {
		return 0
	}
	return b.Record.NumRows()
}

// Bounds are the smallest and largest event time of a batch's rows.
type Bounds struct{ First, Last Micros }

// Lineage says which producer made a batch, and from what. A producer that starts again from an older offset
// makes the same batches with the same lineages; readers keep, for each Source, the highest Position they
// have taken, and drop what is not above it. So nothing counts twice, without transactions.
type Lineage struct {
	Source
	Position
}

// Source is a line of batches whose positions only rise: what one producer makes of one partition of one of
// its inputs.
type Source struct {
	Producer  string // node name; for a gateway see [GatewayProducer]
	Stream    string // input stream; "" for a gateway
	Partition int32  // of the input stream; for a gateway, of the output
}

// GatewayProducer names one start of a gateway: "gateway/<instance>~<start>". A stage that starts again makes the same
// batches again, and must be taken for the one it was. A gateway never does: what it has not acknowledged its hubs send
// anew. So each of its starts is a producer of its own, and neither a system clock that was set back between two of them
// nor two gateways that were given one name by mistake can make readers drop rows that were acknowledged.
func GatewayProducer(instance, start string) string { return "gateway/" + instance + startMark + start }

const startMark = "~"

// Instance is what one start of a gateway has in common with the next; of other producers, their name.
func (s Source) Instance() string {
	if i := strings.LastIndex(s.Producer, startMark); i >= 0 {
		return s.Producer[:i]
	}
	return s.Producer
}

func (s Source) String() string { return fmt.Sprintf("%s(%s/%d)", s.Producer, s.Stream, s.Partition) }

// Position is a place in a Source: the input's offset, and the how-manieth output made of it.
type Position struct {
	Offset int64
	K      int32
}

// After says whether p is beyond o.
func (p Position) After(o Position) bool {
	return p.Offset > o.Offset || p.Offset == o.Offset && p.K > o.K
}
