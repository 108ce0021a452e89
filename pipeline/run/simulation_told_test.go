package run

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"hearthline/flow"
)

// What a run must leave of what the gateways say, worked out from the scripts alone. All schedules of a story are held against its
// undisturbed run, which the same code makes: of rows lost in every run that would say nothing.

// fits holds what an undisturbed run left against what the gateways said.
func (o outcome) fits(kind int, texts []script) error {
	var said, shared []keptRow
	for partition := range int32(len(texts)) {
		if err := o.partitionFits(kind, partition, texts[partition]); err != nil {
			return fmt.Errorf("partition %d: %w", partition, err)
		}
		good, _ := sifted(texts[partition], 0)
		said, shared = append(said, good...), append(shared, o.rows[at{"shares", partition}]...)
	}
	if kind == 3 && !slices.Equal(sorted(shared), sorted(said)) {
		return fmt.Errorf("shares hold\n%v\nand the gateways said\n%v", shared, said)
	}
	return nil
}

func (o outcome) partitionFits(kind int, partition int32, s script) error {
	rows := func(stream string) []keptRow { return o.rows[at{stream, partition}] }
	restore := func(name string, into flow.Stateful) error {
		if err := into.Restore(bytes.NewReader(o.states[fmt.Sprintf(name, partition)])); err != nil {
			return fmt.Errorf("the state of %s: %w", fmt.Sprintf(name, partition), err)
		}
		return nil
	}
	if n := len(rows("keep.dead")); n > 0 {
		return fmt.Errorf("%d dead letters of a sink that refuses nothing", n)
	}
	thirds, _ := sifted(s, 3)
	switch kind {
	case 0:
		good, dead := sifted(s, 0)
		var sum adder
		var bell ringer
		if err := cmp.Or(restore("sum+bell/%d sum", &sum), restore("sum+bell/%d bell", &bell), deadFits(rows("sieve.dead"), dead)); err != nil {
			return err
		}
		return cmp.Or(sumsFit(rows("sums"), good, sum.total), countsFit(rows("counts"), int64(len(good)), bell))
	case 1:
		twos, dead := sifted(s, 2)
		return cmp.Or(deadFits(rows("twos.dead"), dead), o.woven(partition, thirds, twos, restore))
	case 2:
		all, dead := everything(s)
		return cmp.Or(deadFits(rows("weave.dead"), dead), o.woven(partition, all, thirds, restore))
	case 3:
		_, dead := sifted(s, 0)
		var crowd crowder
		if err := cmp.Or(restore("crowd/%d crowd", &crowd), deadFits(rows("spread.dead"), dead)); err != nil {
			return err
		}
		return crowdFits(rows("shares"), rows("all"), crowd.total)
	}
	return fmt.Errorf("what is a pipeline of kind %d to leave?", kind)
}

// deadRow stands for a message that nobody can read.
var deadRow = keptRow{text: "null"}

// sifted gives what a filter passes of a script, and what it sets aside, both in order.
func sifted(s script, div int64) (good, dead []keptRow) {
	for _, b := range s {
		if b.Kind == unreadable {
			dead = append(dead, deadRow)
		}
		rows := keptOf(b.Record)
		divided := func(r keptRow) bool { return div == 0 || r.n%div == 0 }
		if slices.ContainsFunc(rows, func(r keptRow) bool { return divided(r) && r.n%41 == 0 }) {
			dead = append(dead, rows...)
			continue
		}
		for _, r := range rows {
			switch {
			case !divided(r):
			case r.n%7 == 0:
				dead = append(dead, r)
			default:
				good = append(good, r)
			}
		}
	}
	return good, dead
}

// everything gives what a stage passes that finds nothing bad.
func everything(s script) (good, dead []keptRow) {
	for _, b := range s {
		if b.Kind == unreadable {
			dead = append(dead, deadRow)
		}
		good = append(good, keptOf(b.Record)...)
	}
	return good, dead
}

// deadFits holds dead letters against the rows and messages that were set aside.
func deadFits(letters, want []keptRow) error {
	var got []keptRow
	for _, l := range letters {
		_, body, ok := strings.Cut(l.text, " {")
		if ok {
			got = append(got, rowIn(body))
		} else if strings.Contains(l.text, " null row ") {
			got = append(got, deadRow)
		} else {
			return fmt.Errorf("a dead letter of nothing: %s", l.text)
		}
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("the dead letters are of\n%v\nand not of\n%v", got, want)
	}
	return nil
}

// sumsFit holds running sums against the rows they are of.
func sumsFit(got, good []keptRow, total int64) error {
	want, sum := slices.Clone(good), int64(0)
	for i := range want {
		sum += want[i].n
		want[i].n = sum
	}
	if !slices.Equal(got, want) || total != sum {
		return fmt.Errorf("the sums are\n%v and %d in memory, and not\n%v and %d", got, total, want, sum)
	}
	return nil
}

// countsFit holds counts of rows, at most one a second, against how many there were and what the ringer knows.
func countsFit(got []keptRow, rows int64, bell ringer) error {
	last, told := int64(-1), int64(0)
	for _, r := range got {
		if second := r.received / 1_000_000; second <= last {
			return fmt.Errorf("a count of second %d comes after one of second %d", second, last)
		}
		last, told = r.received/1_000_000, told+r.n
	}
	if told+bell.Rows != rows || int64(len(got)) != bell.Rung {
		return fmt.Errorf("%d counts of %d rows, %d rows will be counted; there were %d rows and %d counts", len(got), told, bell.Rows, rows, bell.Rung)
	}
	return nil
}

// woven holds what weave made against its two inputs: it told, in a hash, the order of all rows, and gave or remembers each.
func (o outcome) woven(partition int32, one, two []keptRow, restore func(string, flow.Stateful) error) error {
	var w weaver
	if err := restore("weave/%d weave", &w); err != nil {
		return err
	}
	due := o.rows[at{"due", partition}]
	if !slices.Equal(due, sorted(due)) {
		return fmt.Errorf("not in order are\n%v", due)
	}
	given := slices.Clone(due)
	for _, p := range w.Pending {
		given = append(given, keptRow{received: p.Received, n: p.N})
	}
	if want := sorted(append(slices.Clone(one), two...)); !slices.Equal(sorted(given), want) {
		return fmt.Errorf("given or remembered are\n%v\nand not\n%v", given, want)
	}
	return interleaved(o.rows[at{"order", partition}], one, two)
}

// interleaved says whether the hashes are of the rows of one and two, each in its order. A hash is 31 times the one before and the
// row's number, and a crossing adds 7 to the one before for every batch of its second input.
func interleaved(hashes, one, two []keptRow) error {
	if len(hashes) != len(one)+len(two) {
		return fmt.Errorf("%d rows were woven, and there are %d and %d", len(hashes), len(one), len(two))
	}
	ways, before := map[int]bool{0: true}, int64(0) // how many rows of one may have been taken so far
	for k, h := range hashes {
		next := map[int]bool{}
		is := func(r keptRow) bool {
			added := h.n - 31*before - r.n
			return r.received == h.received && added >= 0 && added%(31*7) == 0
		}
		for i := range ways {
			if i < len(one) && is(one[i]) {
				next[i+1] = true
			}
			if k-i < len(two) && is(two[k-i]) {
				next[i] = true
			}
		}
		if len(next) == 0 {
			return fmt.Errorf("row %d that was woven, received at %d, is none that could be next", k, h.received)
		}
		ways, before = next, h.n
	}
	return nil
}

// crowdFits holds what was parted by number against what a stage made of it that gives each row again, and what it remembers.
func crowdFits(shares, all []keptRow, total int64) error {
	if err := inOrderOfEach(shares); err != nil {
		return fmt.Errorf("shares: %w", err)
	}
	squares := int64(0)
	for _, r := range shares {
		squares += r.n * r.n
	}
	if !slices.Equal(sorted(shares), sorted(all)) || squares != total {
		return fmt.Errorf("of\n%v\nbecame\n%v; in memory are %d and not %d", shares, all, total, squares)
	}
	return nil
}

// What is lost, doubled or out of order in an undisturbed run is seen, in every stream that sinks keep.
func TestTheUndisturbedRunIsHeldAgainstTheScripts(t *testing.T) {
	const stories = 40
	changed := map[string]int{}
	inBubble(t, func(t *testing.T) {
		c := newCampaign()
		defer c.forget()
		for story := range uint64(stories) {
			if err := c.tell(story); err != nil {
				t.Fatalf("story %d: %v", story, err)
			}
			for a, rows := range c.want.rows {
				for what, other := range spoiled(a, rows) {
					c.want.rows[a] = other
					if c.want.fits(c.base.kind, c.texts) == nil {
						t.Errorf("story %d: %v with %s fits:\n%v", story, a, what, other)
					}
					changed[a.stream+" with "+what]++
				}
				c.want.rows[a] = rows
			}
		}
	})
	for _, stream := range []string{"sums", "counts", "sieve.dead", "order", "due", "twos.dead", "weave.dead", "shares", "all", "spread.dead", "keep.dead"} {
		if changed[stream+" with a row more"] == 0 || changed[stream+" with a row less"] == 0 && stream != "keep.dead" {
			t.Errorf("%s was never changed: %v", stream, changed)
		}
	}
}

// spoiled gives the rows of a partition with something wrong.
func spoiled(a at, rows []keptRow) map[string][]keptRow {
	all := map[string][]keptRow{"a row more": append(slices.Clone(rows), keptRow{received: 5_000_000, n: 5, text: " null row "})}
	if n := len(rows); n > 0 {
		all["a row less"] = slices.Delete(slices.Clone(rows), n/2, n/2+1)
		all["a row twice"] = slices.Insert(slices.Clone(rows), n/2, rows[n/2])
		// Several tasks write to shares, of which any may come first, and a dead letter of a message tells no other from it.
		if a.stream != "shares" && a.stream != "all" && !strings.HasSuffix(a.stream, ".dead") && n > 1 {
			swapped := slices.Clone(rows)
			swapped[0], swapped[n-1] = swapped[n-1], swapped[0]
			all["two rows swapped"] = swapped
		}
	}
	return all
}
