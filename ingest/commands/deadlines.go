package commands

import (
	"container/heap"
	"time"
)

// othersWait is how much later than the gateway that wrote a command's last step the others see to what is due: as a rule
// they find it done.
const othersWait = 3 * time.Second

// due sees to a command whose time has come: to be sent by whoever has its hub, to expire, or to be forgotten.
func (c *Commands) due(key string, now time.Time) {
	rec, ok := c.Table.Get(key)
	if !ok {
		c.settle(key)
		return
	}
	cmd, err := decode(rec.Value)
	if err != nil {
		return
	}
	wait := time.Duration(0)
	if cmd.Gateway != c.Gateway {
		wait = othersWait
	}
	switch {
	case cmd.State.Final():
		if at := cmd.Changed.Add(c.Keep + wait); now.Before(at) {
			c.later(key, at)
		} else if !c.Table.Offer(key, nil) {
			c.later(key, now.Add(othersWait))
		}
		return
	case now.Before(cmd.Deadline):
		if cmd.State == Accepted {
			c.hand(cmd)
		}
		return
	case cmd.State > Accepted:
		wait += c.Grace // it may have been executed in time
	}
	if at := cmd.Deadline.Add(wait); now.Before(at) {
		c.later(key, at)
		return
	}
	c.step(cmd, Expired, "", time.Time{})
	c.later(key, now.Add(othersWait)) // until it stands
}

// timers are what is due, the soonest first.
type timers []timer

type timer struct {
	at  time.Time
	key string
}

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at.Before(t[j].at) }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }

// Push implements heap.Interface.
func (t *timers) Push(x any) { *t = append(*t, x.(timer)) }

// Pop implements heap.Interface.
func (t *timers) Pop() any {
	last := (*t)[len(*t)-1]
	*t = (*t)[:len(*t)-1]
	return last
}

// schedule is called with mu held.
func (c *Commands) schedule(key string, at time.Time) {
	heap.Push(&c.timers, timer{at, key})
	if c.timers[0].key == key {
		select {
		case c.timer <- struct{}{}:
		default:
		}
	}
}

func (c *Commands) later(key string, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.schedule(key, at)
}
