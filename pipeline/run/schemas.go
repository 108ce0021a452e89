package run

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// Broken is a stream that would get batches which those who read it cannot count on, while it still holds others.
type Broken struct {
	Stream  string
	Writer  string   // the stage
	Why     []string // column by column
	Readers []string // stages and sinks of the plan
}

// Error says what is wrong in one line.
func (b *Broken) Error() string {
	s := fmt.Sprintf("stream %s holds batches with other columns than %s makes now: %s", b.Stream, b.Writer, strings.Join(b.Why, "; "))
	if len(b.Readers) > 0 {
		s += fmt.Sprintf(" (%s read it)", strings.Join(b.Readers, ", "))
	}
	return s
}

// Way says what to do about it.
func (b *Broken) Way() string {
	return fmt.Sprintf("a column may only be added, and must then be nullable: give what %s makes now a new stream (to: %s2) and move its readers there, as docs/schemas.md says", b.Writer, b.Stream)
}

// notedColumns is a schema as a note has it.
func notedColumns(s *arrow.Schema) (columns, nullable []string) {
	for _, f := range s.Fields() {
		columns = append(columns, f.Name+" "+f.Type.String())
		if f.Nullable {
			nullable = append(nullable, f.Name)
		}
	}
	return columns, nullable
}

// columnTypes reads back what a note has of a stream. Where it does not say what may be null, that is as now has it.
func (n *Note) columnTypes(stream string, now []flow.ColumnType) []flow.ColumnType {
	var all []flow.ColumnType
	for _, c := range n.Schemas[stream] {
		name, of, _ := strings.Cut(c, " ")
		column := flow.ColumnType{Name: name, Type: of}
		if nullable, said := n.Nullable[stream]; said {
			column.Nullable = slices.Contains(nullable, name)
		} else if i := slices.IndexFunc(now, func(c flow.ColumnType) bool { return c.Name == name }); i >= 0 {
			column.Nullable = now[i].Nullable
		}
		all = append(all, column)
	}
	return all
}

// breaks says what of a stream's columns is not as it was noted, and breaks readers; nil if nothing does.
func (r *Runner) breaks(old *Note, stream string) []string {
	st := r.Plan.Streams[stream]
	if old == nil || old.Schemas[stream] == nil || !st.OnKafka() || st.Schema == nil {
		return nil
	}
	now := flow.ColumnTypes(st.Schema)
	return flow.Breaks(old.columnTypes(stream, now), now)
}

// broken finds the streams that a unit would write with other columns than they hold.
func (r *Runner) broken(ctx context.Context, old *Note, streams []string) ([]Broken, error) {
	var all []Broken
	for _, stream := range streams {
		why := r.breaks(old, stream)
		if why == nil {
			continue
		}
		held, err := r.holds(ctx, stream)
		if err != nil {
			return nil, err
		}
		if held {
			st := r.Plan.Streams[stream]
			all = append(all, Broken{Stream: stream, Writer: st.Writer, Why: why, Readers: st.Readers})
		}
	}
	return all, nil
}

// holds says whether a stream holds any batch.
func (r *Runner) holds(ctx context.Context, stream string) (bool, error) {
	for p := range int32(r.Plan.Spec.Partitions) {
		first, next, err := r.road.Bounds(ctx, stream, p)
		if err != nil {
			return false, err
		}
		if first < next {
			return true, nil
		}
	}
	return false, nil
}

// mayWrite refuses a unit that would write what breaks readers of its streams. Side streams of a trial have none but the comparison.
func (r *Runner) mayWrite(ctx context.Context, old, now *Note) error {
	if u := r.Plan.Node(now.Name); now.Kind != kindStage || u == nil || firstOf(r.Plan, u) != nil {
		return nil
	}
	broken, err := r.broken(ctx, old, slices.Sorted(maps.Keys(now.Schemas)))
	if err != nil || len(broken) == 0 {
		return err
	}
	b := &broken[0]
	return fmt.Errorf("%w; %s; `hearthline plan` shows all of it", b, b.Way())
}

// Broken finds all streams that stages of the plan would write with other columns than the streams hold, by what is noted of the
// stages that ran last. It changes nothing.
func (r *Runner) Broken(ctx context.Context) ([]Broken, error) {
	r.init()
	notes, _, err := r.notes(ctx)
	if err != nil {
		return nil, err
	}
	var all []Broken
	for _, u := range r.Plan.Units {
		old := notes[r.group(u.Name)]
		if old == nil || firstOf(r.Plan, u) != nil {
			continue
		}
		broken, err := r.broken(ctx, old, slices.Sorted(maps.Keys(old.Schemas)))
		if err != nil {
			return nil, err
		}
		all = append(all, broken...)
	}
	return all, nil
}

// columns says what differs between the columns of a stream and those that were noted, and refuses what breaks its readers.
func (p *planner) columns(c *Change, g *groupFound, stream string, note *Note) {
	st := p.r.Plan.Streams[stream]
	if note == nil || note.Schemas[stream] == nil || st == nil || st.Schema == nil {
		return
	}
	columns, nullable := notedColumns(st.Schema)
	for _, column := range columns {
		if !slices.Contains(note.Schemas[stream], column) {
			c.Says = append(c.Says, fmt.Sprintf("stream %s: + column %s%s", stream, column, nullText(column, nullable)))
		}
	}
	for _, column := range note.Schemas[stream] {
		if !slices.Contains(columns, column) {
			c.Says = append(c.Says, fmt.Sprintf("stream %s: - column %s", stream, column))
		}
	}
	why := p.r.breaks(note, stream)
	found := p.streams[stream]
	if u := p.r.Plan.Node(note.Name); why == nil || found == nil || found.held() == 0 || u == nil || firstOf(p.r.Plan, u) != nil {
		return
	}
	b := &Broken{Stream: stream, Writer: st.Writer, Why: why, Readers: st.Readers}
	if slices.Contains(p.consent.BreakSchema, stream) {
		c.Says = append(c.Says, b.Error()+": allowed; what they cannot use of the old batches goes to dead letters")
		c.Apply, c.stop = true, append(c.stop, g)
		c.then(func(context.Context) ([]step, error) {
			return []step{p.noteStep(p.r.noteOfUnit(p.r.Plan.Node(note.Name)))}, nil
		})
		return
	}
	c.Refused = b.Error()
	c.Way = b.Way() + fmt.Sprintf("; or --allow break-schema:%s", stream)
}

func nullText(column string, nullable []string) string {
	if name, _, _ := strings.Cut(column, " "); slices.Contains(nullable, name) {
		return ", nullable"
	}
	return ""
}
