package streams

// Eager makes a member of a group as binaries before cooperative rebalancing were: it knows no other way.
func (g GroupConfig) Eager() GroupConfig {
	g.assignors = []string{eager}
	return g
}

// RetryMax is how long a question about streams is asked again before its error is handed on.
const RetryMax = retryMax
