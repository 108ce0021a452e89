package console

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

//go:embed page
var page embed.FS

// handler routes requests.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", check(s.Live))
	mux.HandleFunc("GET /readyz", check(s.ReadyErr))
	mux.HandleFunc("GET /api/graph", s.serveGraph)
	mux.HandleFunc("GET /api/status", s.serveStatus)
	mux.HandleFunc("GET /api/status/stream", s.serveFeed)
	mux.HandleFunc("GET /api/tap", s.serveTap)
	mux.HandleFunc("GET /api/compare", s.serveCompare)
	if s.Gatherer != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(s.Gatherer, promhttp.HandlerOpts{
			MaxRequestsInFlight: 4, Timeout: 10 * time.Second,
		}))
	}
	s.servePage(mux)
	return s.guard(mux)
}

// servePage serves the files of the page under their names, index.html as /.
func (s *Server) servePage(mux *http.ServeMux) {
	names, err := fs.Glob(page, "page/*")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	for _, name := range names {
		content, err := page.ReadFile(name)
		if err != nil {
			panic(err) // it is in the binary
		}
		base := path.Base(name)
		etag := fmt.Sprintf(`"%x"`, sha256.Sum256(content))
		at := "GET /" + base
		if base == "index.html" {
			at = "GET /{$}"
		}
		mux.HandleFunc(at, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "no-cache")
			w.Header().Set("ETag", etag)
			http.ServeContent(w, r, base, time.Time{}, bytes.NewReader(content))
		})
	}
}

// check answers 200 "ok", or 503 with the reason.
func check(f func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if why := reason(f); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, "ok")
	}
}

// graphAnswer is the graph with what else does not change.
type graphAnswer struct {
	*Graph
	Links   []Link  `json:"links"`
	Queries []Query `json:"queries"`
	Panels  panels  `json:"panels"`
}

// panels says which parts of the page have something to show.
type panels struct {
	Graph   bool `json:"graph"`
	Lag     bool `json:"lag"`
	Numbers bool `json:"numbers"`
	Alerts  bool `json:"alerts"`
	Taps    bool `json:"taps"`
	Metrics bool `json:"metrics"`
}

func (s *Server) serveGraph(w http.ResponseWriter, _ *http.Request) {
	answer := graphAnswer{
		Graph: s.graph, Links: append([]Link{}, s.Links...), Queries: append([]Query{}, s.Queries...),
		Panels: panels{
			Graph: s.graph != nil, Lag: s.Lag != nil, Numbers: s.Numbers != nil, Alerts: s.Alerts != nil,
			Taps: s.Taps != nil || s.Tail != nil, Metrics: s.Gatherer != nil,
		},
	}
	if answer.Graph == nil {
		answer.Graph = &Graph{Nodes: []GraphNode{}, Streams: []GraphStream{}, Units: []GraphUnit{}}
	}
	writeJSON(w, answer)
}

func (s *Server) serveStatus(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), pollTimeout)
	defer cancel()
	if s.lag != nil {
		s.lag.fresh(ctx)
	}
	if s.numbers != nil {
		s.numbers.fresh(ctx)
	}
	if s.alerts != nil {
		s.alerts.fresh(ctx)
	}
	status := s.status()
	if s.graph != nil {
		status.History = s.sampler.history(s.graph)
	}
	writeJSON(w, status)
}

func writeJSON(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v) // escapes <, > and &, so that it is harmless wherever it lands
	if err != nil {
		http.Error(w, "cannot write this as JSON: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_, _ = w.Write(body) // whoever asked is gone
}
