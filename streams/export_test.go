package streams

import (
	"sync/atomic"
	"testing"
	"time"
)

// Eager makes a member of a group as binaries before cooperative rebalancing were: it knows no other way.
func (g GroupConfig) Eager() GroupConfig {
	g.assignors = []string{eager}
	return g
}

// RetryMax is how long a question about streams is asked again before its error is handed on.
const RetryMax = retryMax

// CountBuffers counts the buffers that the pool had not and made, until the test ends.
func CountBuffers(t *testing.T) (made func() int64) {
	var n atomic.Int64
	was := buffers.New
	buffers.New = func() any { n.Add(1); return was() }
	t.Cleanup(func() { buffers.New = was })
	return n.Load
}

// SetClock has messages carry the time of a clock that is so far ahead. Before the client is used.
func (c *Client) SetClock(ahead *atomic.Int64) {
	c.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
}
