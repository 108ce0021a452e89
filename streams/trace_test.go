package streams

import (
	"testing"

	"hearthline/flow"
)

// TestTraceTravels in a header of the standard's name; what is no sampled traceparent there harms nothing.
func TestTraceTravels(t *testing.T) {
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	e := envelope{batch: flow.Batch{Kind: flow.KindHeartbeat, Lineage: flow.Lineage{Source: flow.Source{Producer: "gateway/x~1"}}, Trace: trace}}
	got, err := parseHeaders(appendHeaders(nil, &e))
	if err != nil || got.batch.Trace != trace {
		t.Errorf("%q, %v", got.batch.Trace, err)
	}
	e.batch.Trace = ""
	plain := appendHeaders(nil, &e)
	for _, value := range []string{"nonsense", trace[:54] + "0", ""} {
		got, err := parseHeaders(append(plain, header{headerTrace, []byte(value)}))
		if err != nil || got.batch.Trace != "" {
			t.Errorf("%q: %q, %v", value, got.batch.Trace, err)
		}
	}
	if len(plain) != 4 {
		t.Errorf("%d headers without a trace", len(plain))
	}
}
