package cli

import (
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"hearthline/cli/clitest"
)

// A plan tells of its sources: where a new one begins, one whose topic is not there, one that is gone; of one that goes on it
// says nothing.
func TestThePlanTellsOfSources(t *testing.T) {
	c := &clitest.Cluster{Installation: clitest.New(t), Broker: clitest.FreeAddr(t)}
	broker := c.StartBroker()
	defer broker.End(t)
	writer := foreignTopic(t.Context(), t, c.Broker)
	file := strings.Replace(fmt.Sprintf(sourcePipeline, c.Broker, c.Broker), "parquet: {from", "all: {use: parquet, from", 1)
	plan := func(file string) (string, int) { t.Helper(); return change(t, c.Installation, c.Binary, file) }

	said, code := plan(file)
	mustSay(t, said, code, exitChanges, "+ source partner", "begins at the oldest message that is kept of partner.readings, 3 partitions")
	said, code = plan(strings.Replace(file, "topic: partner.readings", "topic: nowhere", 1))
	mustSay(t, said, code, exitRefused, "~ source partner", "nowhere", "have the topic made, or name another")
	said, code = plan(strings.Replace(file, "home: key", "begin: last, home: key", 1))
	mustSay(t, said, code, exitChanges, "+ source partner", "begins with what comes next")

	c.Write(file)
	source := c.Role("source", "partner")
	c.Eventually("the source has taken what there is", "true", func() string {
		writer.Produce(t.Context(), &kgo.Record{Topic: "partner.readings", Key: []byte("h1"), Headers: []kgo.RecordHeader{{Key: "device", Value: []byte("lamp")}}, Value: []byte(`{"metric":"power","value":1}`)}, nil)
		said, _ := plan(file)
		return fmt.Sprint(!strings.Contains(said, "source partner"))
	})
	source.Terminate()
	said, code = plan(strings.Replace(file, "  partner: {", "  other: {", 1))
	mustSay(t, said, code, exitChanges, "- source partner", "its group sourced.source.partner stays", "+ source other")
	if strings.Contains(said, "stage source") {
		t.Error("the group of a source is taken for that of a stage")
	}
}
