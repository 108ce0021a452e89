package console

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/pipeline/compare"
)

// serveCompare compares the two versions of a stage while somebody looks: /api/compare?stage=NAME, as NDJSON, a
// [compare.Report] of all so far every second. It ends after ten minutes, and counts as one who looks at rows.
func (s *Server) serveCompare(w http.ResponseWriter, r *http.Request) {
	stage := r.URL.Query().Get("stage")
	if s.Compare == nil || s.Plan == nil {
		http.Error(w, "this process compares no versions; hearthline compare does", http.StatusNotFound)
		return
	}
	c, err := compare.New(s.Plan, stage)
	if err != nil {
		http.Error(w, fmt.Sprintf("stage %s: there is none of that name with two versions whose streams could be compared", printable(stage)), http.StatusNotFound)
		return
	}
	c.Live = true
	select {
	case s.looking <- struct{}{}:
		defer func() { <-s.looking }()
	default:
		w.Header().Set("Retry-After", "5")
		http.Error(w, fmt.Sprintf("%d others look at rows already; try again", tapsMax), http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), tapTimeoutMax)
	w.Header().Set("Content-Type", ndjson)
	w.Header().Set("Trailer", "Hearthline-Error")
	failed := make(chan error, 1)
	var reading conc.WaitGroup
	defer reading.Wait()
	defer cancel()
	reading.Go(func() { failed <- s.Compare(ctx, c) })
	out := http.NewResponseController(w)
	for {
		select {
		case err := <-failed:
			if err != nil && ctx.Err() == nil {
				w.Header().Set("Hearthline-Error", trailer(err))
			}
			return
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
		_ = out.SetWriteDeadline(time.Now().Add(s.writeWait))
		if json.NewEncoder(w).Encode(c.Report(false)) != nil || out.Flush() != nil {
			return
		}
	}
}
