package chaos

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"sync"
)

// receiver is what alerts are posted to. It keeps a body once for each webhook-id, as its specification asks of a
// receiver, and answers every third id only when it is posted again: by then it has kept it.
type receiver struct {
	listener net.Listener
	mu       sync.Mutex
	bodies   map[string][]byte
	unequal  int // posted again under the same id, and not the same
	dropped  int
}

func newReceiver(addr string) (*receiver, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	r := &receiver{listener: l, bodies: map[string][]byte{}}
	go func() { _ = http.Serve(l, r) }()
	return r, nil
}

func (r *receiver) ServeHTTP(_ http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	id := req.Header.Get("webhook-id")
	if err != nil || id == "" {
		panic(http.ErrAbortHandler)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	before, known := r.bodies[id]
	if known && string(before) != string(body) {
		r.unequal++
	}
	if !known {
		r.bodies[id] = body
		if len(r.bodies)%3 == 0 {
			r.dropped++
			panic(http.ErrAbortHandler)
		}
	}
}

// alerts counts what has been received, by the alert's id and state.
func (r *receiver) alerts() (rows, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := rows{}
	for _, body := range r.bodies {
		var some []struct{ ID, State, Severity string }
		if err := json.Unmarshal(body, &some); err != nil {
			return nil, err
		}
		for _, a := range some {
			all["id="+a.ID+"\x1fstate="+a.State+"\x1fseverity="+a.Severity]++
		}
	}
	return all, nil
}

// checkAlerts holds what was posted against what is stored.
func (w *world) checkAlerts(o *outcome, stored rows) {
	posted, err := w.alerts.alerts()
	if err != nil {
		o.wrongf("a body that was posted: %v", err)
		return
	}
	want := rows{}
	for row, n := range stored {
		f := fields(row)
		want["id="+f["id"]+"\x1fstate="+f["state"]+"\x1fseverity="+f["severity"]] += n
	}
	o.alerts = want.total()
	for _, d := range differences("ClickHouse", want, "what was posted", posted) {
		o.wrongf("alerts: %s", d)
	}
	if w.alerts.unequal > 0 {
		o.wrongf("%d alerts were posted again under their id with another body", w.alerts.unequal)
	}
}
