package ingest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// BenchmarkReportToApp is the time from a hub's report at one gateway until an app has it by its live stream at the other: MQTT and
// HTTP over TLS, on loopback. The log of the table is in memory, so this is what gateways add to a log's own time; with a real one
// TestTapToDevice measures it.
func BenchmarkReportToApp(b *testing.B) {
	one, two := pair(b)
	hub := one.connect(5, "anna", "hub")
	app := two.live("app", "")
	app.next()
	var took []time.Duration
	for i := range b.N {
		since := time.Now()
		hub.send(publishOf(reportedTopic, fmt.Sprintf(`{"n":%d}`, i+1), 1, uint16(i%60000+1)))
		if e := app.next(); !strings.Contains(e.data, fmt.Sprintf(`"reported":{"n":%d}`, i+1)) {
			b.Fatal(e)
		}
		took = append(took, time.Since(since))
		hub.want(packets.Puback)
	}
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000 }
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
}
