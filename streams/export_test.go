package streams

// Eager makes a member of a group as binaries before cooperative rebalancing were: it knows no other way.
func (g GroupConfig) Eager() GroupConfig {
	g.assignors = []string{eager}
	return g
}
