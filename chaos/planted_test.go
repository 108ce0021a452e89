//go:build planted

package chaos

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// bug is a mistake that the product does not make: what of its source is another, and the faults that bring it to light.
type bug struct {
	name    string
	says    string // what some finding of the harness must hold
	changes []change
	victims []string // hurt every while
	kind    string   // how: kill, or net
	way     string   // of net
}

var bugs = []bug{
	{
		name: "readers-take-what-they-have-taken", says: "scores",
		changes: []change{{"pipeline/run/marks.go", "} else if !b.Lineage.Position.After(k.Position) {", "} else if !b.Lineage.Position.After(k.Position) && k.Position.Offset < 0 {"}},
		victims: []string{"normalize", "score", "features"}, kind: "kill",
	},
	{
		name: "what-comes-by-another-key-is-taken-again", says: everywhere + ": ",
		changes: []change{{"pipeline/run/marks.go", "} else if !b.Lineage.Position.After(k.Position) {", "} else if !b.Lineage.Position.After(k.Position) && m.awaited == nil {"}},
		victims: []string{regroup}, kind: "kill",
	},
	{
		name: "acknowledged-before-it-is-kept", says: "lost",
		changes: []change{{"ingest/gather.go", "\tif to != nil {\n\t\tg.waiters = append(g.waiters, waiting{to: to, token: token, since: now})\n\t}",
			"\tif to != nil && to.durable(token) {\n\t\tto.settle()\n\t}"}},
		victims: []string{"g1", "g2"}, kind: "kill",
	},
	{
		name: "a-range-is-written-before-it-is-announced", says: "ClickHouse",
		changes: []change{{"pipeline/run/sinktask.go", "\t\tif announce {", "\t\tif announce && r.First < 0 {"}},
		victims: []string{"into-clickhouse", "into-parquet"}, kind: "kill",
	},
	{
		name: "state-is-not-restored", says: "an undisturbed run",
		changes: []change{{"pipeline/run/runner.go", "states, t.watermark = saved.state, saved.Watermark", "t.watermark = saved.Watermark"}},
		victims: []string{"features", "score"}, kind: "kill",
	},
	{
		name: "a-second-writing-counts-again", says: "ClickHouse",
		changes: []change{{"sinks/clickhouse/write.go", `set("insert_deduplication_token", token),`, `set("insert_deduplication_token", token+time.Now().String()),`}},
		victims: []string{"clickhouse"}, kind: "net", way: waySwallow, // an insert took effect, and its answer is lost
	},
}

// triesMax is how many runs a bug may take to be found: each depends on what was under way when somebody was killed.
const triesMax = 5

func TestPlantedBugsAreFound(t *testing.T) {
	needPython(t)
	for _, b := range bugs {
		t.Run(b.name, func(t *testing.T) {
			for try := range uint64(triesMax) {
				wrong := chaos(t, try+1, rand.New(rand.NewPCG(try+1, 1)), "embedded", b.faults(), b.name, b.changes...).wrong
				for _, w := range wrong {
					if strings.Contains(w, b.says) {
						fmt.Printf("planted %s: found by run %d: %.160q (and %d findings more)\n", b.name, try+1, w, len(wrong)-1)
						return
					}
				}
			}
			t.Errorf("%d runs did not find it", triesMax)
		})
	}
}

// faults hurt the victims in turn, again and again.
func (b bug) faults() (all []fault) {
	for i, at := 0, 500*time.Millisecond; at < faultsFor; i, at = i+1, at+700*time.Millisecond {
		all = append(all, fault{at: at, lasts: 400 * time.Millisecond, kind: b.kind, whom: b.victims[i%len(b.victims)], way: b.way})
	}
	return all
}
