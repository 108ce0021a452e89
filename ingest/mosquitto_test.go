package ingest

import (
	"bytes"
	"context"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// mosquitto runs one of Debian's mosquitto-clients against the gateway, over TLS.
func (r *rig) mosquitto(ctx context.Context, tool, version, user, password string, args ...string) *exec.Cmd {
	r.t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		r.t.Fatalf("%s is not installed; apt-get install mosquitto-clients", tool)
	}
	host, port, _ := net.SplitHostPort(r.at.MQTT.String())
	all := append([]string{"-h", host, "-p", port, "--cafile", r.ca, "--tls-version", "tlsv1.3", "-V", version, "-u", user, "-P", password}, args...)
	return exec.CommandContext(ctx, path, all...)
}

func (r *rig) pub(version, user string, args ...string) (string, error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := r.mosquitto(ctx, "mosquitto_pub", version, user, r.passwords[user], args...).CombinedOutput()
	return string(out), err
}

var mqttVersions = []string{"mqttv311", "mqttv5"}

func TestMosquittoPublishes(t *testing.T) {
	for _, version := range mqttVersions {
		for _, qos := range []string{"0", "1"} {
			t.Run(version+" qos "+qos, func(t *testing.T) {
				r := newRig(t, nil)
				out, err := r.pub(version, "anna", "-q", qos, "-t", "homes/h1/devices/lamp/telemetry", "-m", `{"metric":"power","value":7.5,"unit":"W","seq":3}`)
				if err != nil {
					t.Fatal(err, out)
				}
				eventually(t, "the row is in the log", func() bool { return len(r.road.events()) == 1 })
				e := r.road.events()[0]
				if e.Home != "h1" || e.Device != "lamp" || e.Metric != "power" || e.Value != 7.5 || e.Unit != "W" || e.Seq != 3 || e.Time != e.Received {
					t.Errorf("%+v", e)
				}
			})
		}
	}
}

func TestMosquittoSubscribes(t *testing.T) {
	for _, version := range mqttVersions {
		t.Run(version, func(t *testing.T) {
			r := newRig(t, nil)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			var out, errs bytes.Buffer
			sub := r.mosquitto(ctx, "mosquitto_sub", version, "app", r.passwords["app"], "-q", "1", "-t", "homes/h1/#", "-v", "-C", "3")
			sub.Stdout, sub.Stderr = &out, &errs
			if err := sub.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it has subscribed", func() bool { return r.audience.Len() == 1 })
			if out, err := r.pub(version, "anna", "-q", "1", "-t", "homes/h1/devices/lamp/telemetry", "-m", `{"metric":"power","value":1}`); err != nil {
				t.Fatal(err, out)
			}
			if out, err := r.pub("mqttv5", "anna", "-q", "1", "-t", "homes/h1/hello", "-m", "world"); err != nil {
				t.Fatal(err, out)
			}
			if n, err := r.Send("h1", "devices/lamp/commands", []byte("on"), 1); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			if err := sub.Wait(); err != nil {
				t.Fatal(err, errs.String())
			}
			want := "homes/h1/devices/lamp/telemetry {\"metric\":\"power\",\"value\":1}\nhomes/h1/hello world\nhomes/h1/devices/lamp/commands on\n"
			if out.String() != want {
				t.Errorf("got %q", out.String())
			}
		})
	}
}

func TestMosquittoIsToldWhatIsWrong(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range []struct{ name, version, user, password, topic, payload, says string }{
		{"wrong password", "mqttv311", "anna", "wrong", "homes/h1/devices/a/telemetry", `{"metric":"m","value":1}`, "not authorised"},
		{"wrong password", "mqttv5", "anna", "wrong", "homes/h1/devices/a/telemetry", `{"metric":"m","value":1}`, "Bad User Name or Password"},
		{"another home", "mqttv5", "anna", "", "homes/h2/devices/a/telemetry", `{"metric":"m","value":1}`, "Not authorized"},
		{"another home", "mqttv311", "anna", "", "homes/h2/devices/a/telemetry", `{"metric":"m","value":1}`, "onnection"},
		{"another device", "mqttv5", "lamp", "", "homes/h1/devices/a/telemetry", `{"metric":"m","value":1}`, "Not authorized"},
		{"an app", "mqttv5", "app", "", "homes/h1/devices/a/telemetry", `{"metric":"m","value":1}`, "Not authorized"},
		{"no JSON", "mqttv5", "anna", "", "homes/h1/devices/a/telemetry", `{"metric":`, "Payload format invalid"},
	} {
		t.Run(c.name+" "+c.version, func(t *testing.T) {
			password := c.password
			if password == "" {
				password = r.passwords[c.user]
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			out, _ := r.mosquitto(ctx, "mosquitto_pub", c.version, c.user, password, "-d", "-q", "1", "-t", c.topic, "-m", c.payload).CombinedOutput()
			if !strings.Contains(strings.ToLower(string(out)), strings.ToLower(c.says)) {
				t.Errorf("want %q in what it says:\n%s", c.says, out)
			}
		})
	}
	if n := len(r.road.events()); n != 0 {
		t.Errorf("%d rows in the log", n)
	}
}
