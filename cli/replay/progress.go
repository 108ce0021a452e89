package replay

import (
	"sync"

	"hearthline/flow"
)

// Progress is how far history has been read. Its methods may be called at any time.
type Progress struct {
	mu    sync.Mutex
	parts map[partKey]*part
}

type partKey struct {
	stream    string
	partition int32
}

// part is one partition of one stream. Units are bytes of files, or offsets: only their share counts.
type part struct {
	of        *Progress
	done, all int64
	at        flow.Micros // arrival time of what was read last
}

// part begins to count a partition, or begins again where its task did.
func (p *Progress) part(stream string, partition int32, done, all int64) *part {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.parts == nil {
		p.parts = map[partKey]*part{}
	}
	k := partKey{stream, partition}
	p.parts[k] = &part{of: p, done: done, all: all}
	return p.parts[k]
}

func (p *part) add(n int64, at flow.Micros) {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.done = min(p.done+n, p.all)
	p.at = max(p.at, at)
}

func (p *part) finish() {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.done = p.all
}

// Share is how much of all history has been read, 0 to 1, and the earliest arrival time that a partition stands at; 0 where none
// has told one.
func (p *Progress) Share() (share float64, at flow.Micros) {
	p.mu.Lock()
	defer p.mu.Unlock()
	done, all := 0.0, 0.0
	total := map[string]float64{}
	for k, v := range p.parts {
		total[k.stream] += float64(v.all)
	}
	for k, v := range p.parts {
		if total[k.stream] > 0 {
			done += float64(v.done) / total[k.stream]
		}
		if v.done < v.all && v.at != 0 && (at == 0 || v.at < at) {
			at = v.at
		}
	}
	for _, t := range total {
		if t > 0 {
			all++
		}
	}
	if all == 0 {
		return 1, at
	}
	return done / all, at
}
