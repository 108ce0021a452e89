package apachetest

import (
	"regexp"
	"strconv"
)

// brokerName is what a broker calls itself to the others: "2", "broker-2-fetcher-0", "raft-client-2".
var brokerName = regexp.MustCompile(`^(?:broker-|raft-client-)?(\d+)(?:-|$)`)

// BrokerOf gives the id of the broker that a Kafka client id is of; 0 where it is of another client.
func BrokerOf(clientID string) int {
	found := brokerName.FindStringSubmatch(clientID)
	if found == nil {
		return 0
	}
	id, _ := strconv.Atoi(found[1])
	return id
}
