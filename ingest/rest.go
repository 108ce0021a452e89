package ingest

import (
	"runtime/debug"
	"time"
)

// A handshake leaves some 50 KB for the garbage collector, and what it has collected the runtime gives back to the system
// over minutes, if the heap does not fill it before. After many connections at once a gateway would so be several times as
// large as what it holds, just when its pod is looked at.
const (
	restEvery   = time.Second
	restAfter   = 1000 // handshakes since the last time
	restBelow   = 20   // a second: the storm is over
	restPauseIs = 10   // times restEvery between two collections, at least
)

// rest collects garbage and gives memory back after a storm of handshakes, until the gateway drains.
func (g *Gateway) rest() {
	tick := time.NewTicker(restEvery)
	defer tick.Stop()
	last, rested, pause := uint64(0), uint64(0), 0
	for {
		select {
		case <-g.stop:
			return
		case <-tick.C:
		}
		now := g.count.accepted.Load()
		if pause--; pause <= 0 && now-rested >= restAfter && now-last < restBelow {
			debug.FreeOSMemory()
			rested, pause = now, restPauseIs
		}
		last = now
	}
}
