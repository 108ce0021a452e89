// Package flowtest runs a stage's cases ([hearthline/flow/cases]) as tests:
//
//	func TestCases(t *testing.T) {
//		flowtest.Run(t, func() flow.Stage { return dedupe.New() }, "cases")
//	}
package flowtest

import (
	"testing"

	"hearthline/flow"
	"hearthline/flow/cases"
)

// Run runs the cases of a file, or of the .yaml files of a directory, against the stage that newStage makes.
func Run(t *testing.T, newStage func() flow.Stage, path string) {
	t.Helper()
	all, err := cases.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := cases.Seed()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		t.Run(c.Name(), func(t *testing.T) {
			if err := c.Check(t.Context(), newStage, seed); err != nil {
				t.Errorf("%s: %s: %v\n(FLOWTEST_SEED=%d repeats it)", c.At(), c.Name(), err, seed)
			}
		})
	}
}
