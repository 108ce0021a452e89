package cli

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

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

// A source whose topic is silent is not behind; one whose broker is away is.
func TestASourceSaysHowFarItIs(t *testing.T) {
	c := &clitest.Cluster{Installation: clitest.New(t), Broker: clitest.FreeAddr(t)}
	broker := c.StartBroker()
	writer := foreignTopic(t.Context(), t, c.Broker)
	if err := writer.ProduceSync(t.Context(), &kgo.Record{Topic: "partner.readings", Key: []byte("h1"), Headers: []kgo.RecordHeader{{Key: "device", Value: []byte("lamp")}},
		Timestamp: time.Now().Add(-time.Hour), Value: []byte(`{"metric":"power","value":1}`)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	c.Write(fmt.Sprintf(sourcePipeline, c.Broker, c.Broker))
	source := c.Role("source", "partner")
	line := regexp.MustCompile(`(?m)^hearthline_watermark_seconds\{node="partner".*\} (\S+)$`)
	behind := func() time.Duration { // of the partition that is furthest
		res, err := http.Get("http://" + source.Ops + "/metrics")
		if err != nil {
			return time.Hour
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		most := time.Duration(0)
		found := line.FindAllSubmatch(text, -1)
		for _, m := range found {
			seconds, err := strconv.ParseFloat(string(m[1]), 64)
			if err != nil {
				t.Fatal(err)
			}
			most = max(most, time.Since(time.UnixMicro(int64(seconds*1e6))))
		}
		if len(found) < 3 {
			return time.Hour
		}
		return most
	}
	c.Eventually("it has all, and says so while nothing comes", "true", func() string { return fmt.Sprint(behind() < 5*time.Second) })
	time.Sleep(6 * time.Second) // silence takes time; nothing can be polled for
	c.Eventually("a silent topic makes it no later", "true", func() string { return fmt.Sprint(behind() < 5*time.Second) })
	broker.End(t)
	c.Eventually("it is behind while nobody answers", "true", func() string { return fmt.Sprint(behind() > 6*time.Second) })
	source.Kill()
}
