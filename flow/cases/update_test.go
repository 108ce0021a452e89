package cases

import (
	"context"
	"strings"
	"testing"

	"hearthline/flow"
)

// beforeUpdate has something of everything: comments, several cases, steps that want any, an error, nothing, too little, too much.
const beforeUpdate = `# Sums, as they come.
name: sums   # of values
settings: {start: 1}
each: {home: h, device: a, metric: m}

steps:
# the first rows
- in:
  - {time: 0s, value: 1}   # one
  - {time: 1s, value: 2}
  want:
    # what comes of them
    sums:
    - {sum: 2}   # right
    - {device: a, sum: 5}

# a row that is bad
- in: [{time: 2s, value: -1}, {time: 3s, value: 3}]
  want: {sums: [{sum: 7}]}
- in: [{time: 4s, value: -2}]
  dead: [{row: 0, reason: below}]
- in: [{time: 5s, value: 1}, {time: 6s, value: -4}]
  dead:
  - {row: 0, reason: "too much"}
- want: {sums: [{sum: 100}]}
  in: []
- in: [{time: 7s, value: 1}]
  want: any
# the end
---
name: not asked for
each: {home: h, device: a, metric: m}
steps:
- in: [{time: 0s, value: 1}]
  want: {sums: [{sum: 99}]}
`

const afterUpdate = `# Sums, as they come.
name: sums   # of values
settings: {start: 1}
each: {home: h, device: a, metric: m}

steps:
# the first rows
- in:
  - {time: 0s, value: 1}   # one
  - {time: 1s, value: 2}
  want:
    # what comes of them
    sums:
    - {sum: 2}   # right
    - {sum: 4, device: a}

# a row that is bad
- in: [{time: 2s, value: -1}, {time: 3s, value: 3}]
  want: {sums: [{sum: 7}]}
  dead:
  - {row: 0, reason: below 0}
- in: [{time: 4s, value: -2}]
  dead: [{row: 0, reason: below}]
- in: [{time: 5s, value: 1}, {time: 6s, value: -4}]
  dead:
  - {row: 1, reason: below 0}
  want:
    sums:
    - {sum: 8, device: a}
- want: {}
  in: []
- in: [{time: 7s, value: 1}]
  want: any
# the end
---
name: not asked for
each: {home: h, device: a, metric: m}
steps:
- in: [{time: 0s, value: 1}]
  want: {sums: [{sum: 99}]}
`

func updated(text string, newStage func() flow.Stage) (string, error) {
	out, err := Update(context.Background(), "cases/it.yaml", []byte(text), newStage, 1, func(c *Case) bool { return c.Name() != "not asked for" })
	return string(out), err
}

func TestUpdate(t *testing.T) {
	right := func() flow.Stage { return &summer{} }
	got, err := updated(beforeUpdate, right)
	if err != nil {
		t.Fatal(err)
	}
	if got != afterUpdate {
		t.Errorf("got\n%s\nwant\n%s", got, afterUpdate)
	}
	again, err := updated(got, right)
	if err != nil || again != got {
		t.Errorf("updated once more it is another (%v):\n%s", err, again)
	}
}

// TestUpdateRefuses: what does not come out the same each time is no case, and an error is none either.
func TestUpdateRefuses(t *testing.T) {
	for wrong, want := range map[string]string{"counts batches": "not updated, since it does not hold", "panics": "process panicked"} {
		if out, err := updated(beforeUpdate, func() flow.Stage { return &summer{wrong: wrong} }); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a stage that %s: %v; want %q\n%s", wrong, err, want, out)
		}
	}
	flowed := "name: braces\neach: {home: h, device: a, metric: m}\nsteps:\n- {in: [{time: 0s, value: 1}], want: {sums: [{sum: 99}]}}\n"
	if _, err := updated(flowed, func() flow.Stage { return &summer{} }); err == nil || !strings.Contains(err.Error(), "line 4: this step stands in braces") {
		t.Error(err)
	}
}
