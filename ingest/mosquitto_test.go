package ingest

import (
	"bytes"
	"context"
	"net"
	"os/exec"
	"slices"
	"strconv"
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

// mosquittoSub runs mosquitto_sub until it has n messages, and gives them: "topic payload qos retain". subscribed
// returns when the subscription is in force. The filter is the last of args.
func (r *rig) mosquittoSub(version string, n int, args ...string) (wait func() []string, subscribed func()) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	c := r.mosquitto(ctx, "mosquitto_sub", version, "app", r.passwords["app"], append([]string{"-F", "%t %p %q %r", "-C", strconv.Itoa(n)}, args...)...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	filter := args[len(args)-1]
	before := r.listening(filter)
	if err := c.Start(); err != nil {
		r.t.Fatal(err)
	}
	return func() []string {
			defer cancel()
			if err := c.Wait(); err != nil {
				r.t.Fatal(err, errs.String(), out.String())
			}
			return strings.Split(strings.TrimSpace(out.String()), "\n")
		}, func() {
			eventually(r.t, "it has subscribed", func() bool { return r.listening(filter) > before })
		}
}

// listening is how many connected clients have subscribed to a filter.
func (r *rig) listening(filter string) (n int) {
	r.connectionsMu.Lock()
	defer r.connectionsMu.Unlock()
	for c := range r.connections {
		for _, sub := range c.session.Subscriptions() {
			if sub.Filter == filter {
				n++
			}
		}
	}
	return n
}

func (r *rig) mustPub(version string, args ...string) {
	r.t.Helper()
	if out, err := r.pub(version, "anna", args...); err != nil {
		r.t.Fatal(err, out)
	}
}

func TestMosquittoKnowsAll(t *testing.T) {
	for _, version := range mqttVersions {
		t.Run(version, func(t *testing.T) {
			r := newRig(t, nil)
			want := func(what string, wait func() []string, want ...string) {
				t.Helper()
				if got := wait(); !slices.Equal(got, want) {
					t.Errorf("%s: %q; want %q", what, got, want)
				}
			}
			r.mustPub(version, "-q", "2", "-t", lampTopic, "-m", reading)
			if n := len(r.road.events()); n != 1 {
				t.Errorf("QoS 2: %d rows in the log when it is acknowledged", n)
			}
			r.mustPub(version, "-q", "1", "-r", "-t", "homes/h1/kept", "-m", "last")
			wait, _ := r.mosquittoSub(version, 1, "-q", "2", "-t", "homes/h1/kept")
			want("retained", wait, "homes/h1/kept last 1 1")

			wait, subscribed := r.mosquittoSub(version, 1, "-q", "2", "-t", "homes/h1/live")
			subscribed()
			r.mustPub(version, "-q", "2", "-t", "homes/h1/live", "-m", "x")
			want("QoS 2 all the way", wait, "homes/h1/live x 2 0")

			keep := []string{"-i", "keeper", "-c", "-q", "1", "-t", "homes/h1/queue"}
			if version == "mqttv5" {
				keep = append([]string{"-x", "300"}, keep...)
			}
			first, subscribed := r.mosquittoSub(version, 1, keep...)
			subscribed()
			r.mustPub(version, "-q", "1", "-t", "homes/h1/queue", "-m", "1")
			want("before it leaves", first, "homes/h1/queue 1 1 0")
			eventually(t, "it is away", func() bool { _, away := r.registry.Len(); return away == 1 })
			r.mustPub(version, "-q", "1", "-t", "homes/h1/queue", "-m", "2")
			r.mustPub(version, "-q", "2", "-t", "homes/h1/queue", "-m", "3")
			second, _ := r.mosquittoSub(version, 2, keep...)
			want("what waited", second, "homes/h1/queue 2 1 0", "homes/h1/queue 3 1 0")

			one, subscribed := r.mosquittoSub(version, 3, "-q", "1", "-t", "$share/g/homes/h1/shared")
			subscribed()
			two, subscribed := r.mosquittoSub(version, 3, "-q", "1", "-t", "$share/g/homes/h1/shared")
			subscribed()
			for i := range 6 {
				r.mustPub(version, "-q", "1", "-t", "homes/h1/shared", "-m", strconv.Itoa(i))
			}
			all := append(one(), two()...)
			slices.Sort(all)
			if len(slices.Compact(all)) != 6 {
				t.Errorf("shared: %q", all)
			}

			wait, subscribed = r.mosquittoSub(version, 1, "-q", "1", "-t", "homes/h1/will")
			subscribed()
			ctx, kill := context.WithCancel(context.Background())
			willed := r.mosquitto(ctx, "mosquitto_sub", version, "anna", r.passwords["anna"], "-t", "homes/h1/x", "--will-topic", "homes/h1/will", "--will-payload", "gone", "--will-qos", "1")
			if err := willed.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it has subscribed", func() bool { return r.listening("homes/h1/x") == 1 })
			kill()
			willed.Wait()
			want("will", wait, "homes/h1/will gone 1 0")
		})
	}
}
