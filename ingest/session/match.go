package session

import (
	"slices"
	"strings"

	"hearthline/ingest/mqtt"
)

// flatMax is how many listeners of a home are looked at one by one: a home with a hub and a few apps needs no tree, and a
// tree costs ten times the memory.
const flatMax = 16

// home holds the listeners of one home.
type home struct {
	flat   []*listener // while tree is nil
	tree   *node
	shares map[string]*share
	n      int
}

// node is a level of the tree of topic filters.
type node struct {
	children map[string]*node
	plus     *node       // the level +
	here     []*listener // filters that end at this level
	deep     []*listener // filters that go on with #
}

// put adds a listener, or replaces the one of the same session and filter. It says how many were added.
func (h *home) put(l *listener) int {
	if h.tree == nil {
		if replace(h.flat, l) {
			return 0
		}
		h.n++
		if len(h.flat) < flatMax {
			h.flat = append(h.flat, l)
			return 1
		}
		h.tree = new(node)
		for _, old := range h.flat {
			h.tree.put(old)
		}
		h.flat = nil
		h.tree.put(l)
		return 1
	}
	n := h.tree.put(l)
	h.n += n
	return n
}

func replace(all []*listener, l *listener) bool {
	for i, old := range all {
		if old.to == l.to && old.share == l.share && old.filter == l.filter {
			all[i] = l
			return true
		}
	}
	return false
}

func (n *node) put(l *listener) int {
	to := n.reach(l.filter)
	if replace(*to, l) {
		return 0
	}
	*to = append(*to, l)
	return 1
}

// reach gives the list of a filter, and makes the levels on the way to it.
func (n *node) reach(filter string) *[]*listener {
	for more := true; more; {
		var level string
		level, filter, more = strings.Cut(filter, "/")
		switch level {
		case "#":
			return &n.deep
		case "+":
			if n.plus == nil {
				n.plus = new(node)
			}
			n = n.plus
		default:
			next := n.children[level]
			if next == nil {
				next = new(node)
				if n.children == nil {
					n.children = make(map[string]*node, 1)
				}
				n.children[strings.Clone(level)] = next
			}
			n = next
		}
	}
	return &n.here
}

// cut removes the listener of a session, or of a share, with a filter. It says how many were removed.
func (h *home) cut(filter string, s *Session, sh *share) int {
	is := func(l *listener) bool { return l.to == s && l.share == sh && l.filter == filter }
	before := h.n
	if h.tree == nil {
		h.flat = slices.DeleteFunc(h.flat, func(l *listener) bool {
			if is(l) {
				h.n--
			}
			return is(l)
		})
		return before - h.n
	}
	if h.tree.cut(filter, true, is) {
		h.n--
	}
	return before - h.n
}

// cut removes the first listener for which is says so below n, and the levels that are empty then.
func (n *node) cut(filter string, more bool, is func(*listener) bool) bool {
	from := &n.here
	if more {
		var level string
		level, filter, more = strings.Cut(filter, "/")
		next := n.plus
		switch level {
		case "#":
			from = &n.deep
			next = nil
		case "+":
		default:
			next = n.children[level]
		}
		if level != "#" {
			if next == nil || !next.cut(filter, more, is) {
				return false
			}
			if next.empty() {
				if level == "+" {
					n.plus = nil
				} else {
					delete(n.children, level)
				}
			}
			return true
		}
	}
	i := slices.IndexFunc(*from, is)
	if i < 0 {
		return false
	}
	*from = slices.Delete(*from, i, i+1)
	return true
}

func (n *node) empty() bool {
	return len(n.here) == 0 && len(n.deep) == 0 && len(n.children) == 0 && n.plus == nil
}

// match appends the listeners whose filters take a topic.
func (h *home) match(topic string, to []*listener) []*listener {
	if h.tree != nil {
		return h.tree.match(topic, true, to)
	}
	for _, l := range h.flat {
		if mqtt.Matches(l.filter, topic) {
			to = append(to, l)
		}
	}
	return to
}

func (n *node) match(topic string, more bool, to []*listener) []*listener {
	to = append(to, n.deep...) // a/# is also a
	if !more {
		return append(to, n.here...)
	}
	level, rest, more := strings.Cut(topic, "/")
	if next := n.children[level]; next != nil {
		to = next.match(rest, more, to)
	}
	if n.plus != nil {
		to = n.plus.match(rest, more, to)
	}
	return to
}
