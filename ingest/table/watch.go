package table

import (
	"strings"
	"sync"
)

// Change is a record that took effect.
type Change struct{ Old, New Record }

// Watcher sees the changes of keys with a prefix.
type Watcher struct {
	C <-chan Change // closed when it has lost changes, or was closed

	t      *Table
	prefix string
	out    chan Change
	once   sync.Once
}

// Watch gives the changes of keys with a prefix from now on. One that does not keep up has lost: its channel is closed, and
// it watches and scans anew. Close it when done.
func (t *Table) Watch(prefix string) *Watcher {
	c := make(chan Change, t.WatchMax)
	w := &Watcher{C: c, out: c, t: t, prefix: prefix}
	t.watchMu.Lock()
	defer t.watchMu.Unlock()
	if t.watchers[w.under()] == nil {
		t.watchers[w.under()] = map[*Watcher]struct{}{}
	}
	t.watchers[w.under()][w] = struct{}{}
	return w
}

// Close ends watching. It may be called more than once.
func (w *Watcher) Close() {
	w.t.watchMu.Lock()
	defer w.t.watchMu.Unlock()
	w.end()
}

// under is where the table keeps it.
func (w *Watcher) under() string {
	if strings.Contains(w.prefix, "/") {
		return group(w.prefix)
	}
	return ""
}

// end is called with watchMu held.
func (w *Watcher) end() {
	w.once.Do(func() {
		delete(w.t.watchers[w.under()], w)
		if len(w.t.watchers[w.under()]) == 0 {
			delete(w.t.watchers, w.under())
		}
		close(w.out)
	})
}

func (t *Table) tell(c Change) {
	t.watchMu.Lock()
	defer t.watchMu.Unlock()
	for _, under := range []string{"", group(c.New.Key)} {
		for w := range t.watchers[under] {
			if !strings.HasPrefix(c.New.Key, w.prefix) {
				continue
			}
			select {
			case w.out <- c:
			default:
				t.count.lost.Add(1)
				w.end()
			}
		}
	}
}
