package ingest

import (
	"net"
	"time"

	"hearthline/ingest/mqtt"
)

// evictEvery is how often some of the clients are sent away while the gateway drains.
const evictEvery = 100 * time.Millisecond

// DrainMax is how long a gateway with these settings may take from SIGTERM to its end. Whoever would kill it must wait longer.
func (g *Gateway) DrainMax() time.Duration {
	return g.DrainWait + time.Duration(float64(g.ConnectionsMax)/float64(max(1, g.EvictPerSecond))*float64(time.Second)) + g.DrainTimeout
}

// retreat is the first part of a drain: the gateway says that it is not ready, gives load balancers time to see it, takes no more connections,
// and sends its MQTT clients away at a pace that the others can take them at. Their commands and telemetry go on until it is their turn.
func (g *Gateway) retreat(listeners ...net.Listener) {
	g.state.Store(stateLeaving)
	if g.DrainWait > 0 {
		time.Sleep(g.DrainWait)
	}
	g.state.Store(stateDraining)
	for _, ln := range listeners {
		if ln != nil {
			ln.Close()
		}
	}
	most := max(1, int(float64(g.EvictPerSecond)*evictEvery.Seconds()))
	tick := time.NewTicker(evictEvery)
	defer tick.Stop()
	for g.retireSome(most) {
		<-tick.C
	}
}

// retireSome sends some of the clients away, and says whether there may be more. That ends: no new ones come in.
func (g *Gateway) retireSome(most int) bool {
	var some []*connection
	g.connectionsMu.Lock()
	for c := range g.connections {
		if c.retired.Load() {
			continue
		}
		if some = append(some, c); len(some) == most {
			break
		}
	}
	g.connectionsMu.Unlock()
	for _, c := range some {
		c.retired.Store(true) // nothing more is taken from it
		g.tasks.Go(func() {
			c.part()
			c.link.FinishApart()
		})
	}
	return len(some) == most
}

// part takes leave of a client of a gateway that drains, when everything taken from it is acknowledged.
func (c *connection) part() {
	c.parting.Do(func() {
		c.settleAll()
		if c.terms.Version != mqtt.V5 {
			return
		}
		why, server := "the gateway is going down", c.g.ServerReference
		if !c.explains || 16+len(why)+len(server) > c.terms.PacketMax {
			why = ""
		}
		c.link.Add(16+len(why)+len(server), func(b []byte) []byte {
			if server != "" && 16+len(why)+len(server) <= c.terms.PacketMax {
				return mqtt.AppendUseAnother(b, why, server)
			}
			return mqtt.AppendDisconnect(b, mqtt.CodeShuttingDown, why)
		})
	})
}
