package ingest

import (
	"bytes"
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"hearthline/flow"
)

// BenchmarkPublishQoS1 is one client over TLS on loopback, client and gateway sharing the machine, with so many messages
// in flight. The log is at once; what is measured is the gateway's path and, with a window of 1, its linger.
func BenchmarkPublishQoS1(b *testing.B) {
	for _, window := range []int{1, 64} {
		b.Run(fmt.Sprintf("window %d", window), func(b *testing.B) {
			r := newRig(b, func(g *Gateway) { g.Linger, g.Publisher = 0, nowhere{} })
			p := r.connect(4, "anna", "bench")
			payload := `{"metric":"temperature","value":21.53,"unit":"Cel","time":"` + r.clock.now().Time().Format("2006-01-02T15:04:05.000Z07:00") + `","seq":123456,"attributes":{"room":"living room","firmware":"1.22.3"}}`
			var burst []byte
			for id := range uint16(window) {
				burst = append(burst, encode(b, 4, publishOf(lampTopic, payload, 1, id+1))...)
			}
			buf := make([]byte, 4*window)
			p.conn.SetDeadline(time.Time{})
			b.ReportAllocs()
			b.ResetTimer()
			before := computed(b)
			for n := 0; n < b.N; n += window {
				p.write(burst...)
				for have := 0; have < len(buf); {
					k, err := p.conn.Read(buf[have:])
					if err != nil {
						b.Fatal(err)
					}
					have += k
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(computed(b)-before)/float64(b.N), "cpu-ns/op")
			if !bytes.HasPrefix(buf, []byte{packets.Puback << 4, 2}) {
				b.Fatal(buf)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
		})
	}
}

// computed is the time that this process has computed: what a machine that does other things too does not change.
func computed(b *testing.B) time.Duration {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// nowhere is a Publisher that is done at once.
type nowhere struct{}

func (nowhere) Publish(context.Context, string, int32, ...flow.Batch) (int64, error) { return 0, nil }
