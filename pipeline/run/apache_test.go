package run

import (
	"testing"

	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
)

// The same members, on Apache Kafka.
func TestMembersComeAndGoOnApacheKafka(t *testing.T) {
	if testing.Short() {
		t.Skip("rebalances take seconds")
	}
	membersComeAndGo(t, apachetest.Start(t, apache.New())[0])
}
