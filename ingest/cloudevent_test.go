package ingest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"

	"hearthline/flow"
	"hearthline/ingest/payload/payloadtest"
)

// TestCloudEventsOfTheSDK sends by the project's own client, in both of its modes.
func TestCloudEventsOfTheSDK(t *testing.T) {
	r := newRig(t, nil)
	at := time.Now().Add(-time.Minute).UTC().Truncate(time.Microsecond)
	transport := &http.Transport{TLSClientConfig: r.tls()}
	defer transport.CloseIdleConnections()
	request, _ := http.NewRequest("POST", "https://"+r.at.HTTP.String()+"/v1/telemetry", nil)
	request.SetBasicAuth("anna", r.passwords["anna"])
	p, err := cehttp.New(cloudevents.WithTarget(request.URL.String()), cloudevents.WithHeader("Authorization", request.Header.Get("Authorization")), cloudevents.WithRoundTripper(transport))
	if err != nil {
		t.Fatal(err)
	}
	c, err := cloudevents.NewClient(p)
	if err != nil {
		t.Fatal(err)
	}
	for i, mode := range []func(context.Context) context.Context{binding.WithForceBinary, binding.WithForceStructured} {
		e := cloudevents.NewEvent()
		e.SetID(fmt.Sprint("e", i))
		e.SetSource("https://cloud.example/homes")
		e.SetType("com.example.temperature")
		e.SetSubject("Küche") // percent-encoded in binary mode
		e.SetTime(at)
		if err := e.SetData("application/json", map[string]any{"value": 20 + i, "unit": "°C", "seq": i}); err != nil {
			t.Fatal(err)
		}
		for range 2 { // again: it is known by its source and id
			if res := c.Send(mode(context.Background()), e); !cloudevents.IsACK(res) {
				t.Fatal(res)
			}
		}
	}
	all := r.road.events()
	if len(all) != 2 {
		t.Fatalf("%d rows; want 2", len(all))
	}
	for i, e := range all {
		if e.Device != "Küche" || e.Metric != "temperature" || e.Value != float64(20+i) || e.Time != flow.MicrosOf(at) || e.Unit != "°C" || e.Seq != int64(i) {
			t.Errorf("%+v", e)
		}
	}
}

func batchOf(events ...string) []byte { return []byte("[" + strings.Join(events, ",") + "]") }

func eventOf(id, more string) string {
	return fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"s","type":"power"%s}`, id, more)
}

// TestCloudEventsInABatch are taken one by one, each once, whatever batch it comes in.
func TestCloudEventsInABatch(t *testing.T) {
	r := newRig(t, nil)
	one, two := eventOf("1", `,"subject":"lamp","data":{"value":1}`), eventOf("2", `,"subject":"lamp","data":[{"value":2},{"value":3,"metric":"energy"},{}]`)
	post := func(body []byte) (int, receipt) {
		t.Helper()
		status, answer, _ := r.post("anna", mediaEvents, body)
		var got receipt
		if err := json.Unmarshal([]byte(answer), &got); err != nil {
			t.Fatal(err, answer)
		}
		return status, got
	}
	status, got := post(batchOf(one, two, eventOf("", `,"data":{"value":1}`), `"no event"`, one, eventOf("3", `,"subject":"h2/lamp","data":{"value":9}`)))
	if status != 200 || got.Accepted != 3 || got.Refused != 4 || got.Repeated != 1 {
		t.Errorf("%d %+v", status, got)
	}
	for i, want := range []string{"value", "envelope", "envelope", "home"} {
		if i >= len(got.Rows) || got.Rows[i].Reason != want {
			t.Errorf("verdict %d of %+v; want %s", i, got.Rows, want)
		}
	}
	if status, got := post(batchOf(two, eventOf("4", `,"subject":"h1/oven","data":{"value":4}`))); status != 200 || got.Accepted != 3 || got.Repeated != 1 || got.Refused != 1 {
		t.Errorf("%d %+v; want event 2 known, event 4 taken", status, got)
	}
	if status, got := post(batchOf(one, two)); status != 200 || got.Repeated != 2 || got.Accepted != 3 {
		t.Errorf("%d %+v", status, got)
	}
	all := r.road.events()
	if len(all) != 4 || all[2].Metric != "energy" || all[3].Device != "oven" || all[3].Home != "h1" {
		t.Errorf("%+v", all)
	}
}

func TestCloudEventsThatCannotBeUsed(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range []struct {
		name, media, body string
		header            []string
		status            int
		says              string
	}{
		{"no JSON", mediaEvent, "{", nil, 400, "malformed"},
		{"an empty batch", mediaEvents, "[]", nil, 400, "no events"},
		{"version 2", mediaEvent, `{"specversion":"2.0","id":"1","source":"s","type":"t"}`, nil, 400, "specversion"},
		{"no source", mediaEvent, `{"specversion":"1.0","id":"1","type":"t","data":{"value":1}}`, nil, 400, "source is missing"},
		{"no data", mediaEvent, eventOf("n", ""), nil, 400, "malformed"},
		{"a time that is none", mediaEvent, eventOf("t", `,"time":"today","data":{}`), nil, 400, "RFC 3339"},
		{"data twice", mediaEvent, eventOf("d", `,"data":{},"data_base64":"e30="`), nil, 400, "both data"},
		{"base64 that is none", mediaEvent, eventOf("b", `,"data_base64":"?"`), nil, 400, "base64"},
		{"XML", mediaEvent, eventOf("x", `,"datacontenttype":"application/xml","data":"<a/>"`), nil, 400, "datacontenttype"},
		{"a long id", mediaEvent, eventOf(strings.Repeat("i", 2000), `,"data":{}`), nil, 400, "at most 1024"},
		{"binary, no id", mediaJSON, deviceReading, []string{"ce-specversion", "1.0", "ce-type", "t", "ce-source", "s"}, 400, "id is missing"},
		{"binary, XML", "application/xml", "<a/>", []string{"ce-specversion", "1.0", "ce-type", "t", "ce-source", "s", "ce-id", "xml"}, 400, "datacontenttype"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body, _ := r.post("anna", c.media, []byte(c.body), c.header...)
			if status != c.status || !strings.Contains(body, c.says) {
				t.Errorf("%d %s; want %d and %q", status, body, c.status, c.says)
			}
		})
	}
	if n := len(r.road.events()); n != 0 {
		t.Errorf("%d rows in the log", n)
	}
}

// TestCloudEventsCarryOtherFormats: SenML, lines, and Arrow in base64.
func TestCloudEventsCarryOtherFormats(t *testing.T) {
	r := newRig(t, nil)
	body, _ := json.Marshal([]map[string]any{
		{"specversion": "1.0", "id": "1", "source": "s", "type": "t", "datacontenttype": mediaSenML, "data": []map[string]any{{"n": "lamp/power", "v": 5}}},
		{"specversion": "1.0", "id": "2", "source": "s", "type": "t", "datacontenttype": mediaLines, "data": deviceReading + "\n" + deviceReading},
		{"specversion": "1.0", "id": "3", "source": "s", "type": "t", "datacontenttype": mediaJSON, "data_base64": []byte(deviceReading)},
		{"specversion": "1.0", "id": "4", "source": "s", "type": "t", "datacontenttype": mediaArrow, "data_base64": payloadtest.Arrow(t)},
	})
	status, answer, _ := r.post("anna", mediaEvents, body)
	var got receipt
	if err := json.Unmarshal([]byte(answer), &got); err != nil || status != 200 || got.Accepted+got.Refused != 7 || got.Accepted < 4 {
		t.Errorf("%d %s", status, answer)
	}
}
