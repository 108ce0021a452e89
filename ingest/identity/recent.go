package identity

import "sync"

// recent is a map that forgets: it holds two generations of max/2 entries, and drops the older when the younger is
// full. Safe for concurrent use.
type recent[K comparable, V any] struct {
	mu         sync.Mutex
	max        int
	young, old map[K]V
}

func newRecent[K comparable, V any](max int) *recent[K, V] {
	return &recent[K, V]{max: max, young: make(map[K]V)}
}

func (r *recent[K, V]) get(k K) (V, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.young[k]
	if !ok {
		if v, ok = r.old[k]; ok {
			r.add(k, v)
		}
	}
	return v, ok
}

func (r *recent[K, V]) put(k K, v V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(k, v)
}

func (r *recent[K, V]) add(k K, v V) {
	if len(r.young) >= r.max/2 {
		r.old, r.young = r.young, make(map[K]V)
	}
	r.young[k] = v
}
