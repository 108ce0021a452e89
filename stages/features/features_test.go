package features

import (
	"testing"

	"hearthline/flow"
	"hearthline/flow/flowtest"
)

func TestCases(t *testing.T) {
	flowtest.Run(t, func() flow.Stage { return New() }, "cases")
}
