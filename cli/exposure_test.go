package cli

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hearthline/cli/clitest"
)

// listening are the addresses on which a process and its children listen: TCP that waits for connections, and every
// UDP socket that is bound to a port and to no peer.
func listening(t *testing.T, pid int) []string {
	t.Helper()
	inodes := map[string]bool{}
	for _, p := range append(descendants(t, pid), pid) {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p))
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "socket:[") {
				inodes[strings.Trim(to, "socket:[]")] = true
			}
		}
	}
	var found []string
	for _, kind := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, kind))
		if err != nil {
			continue // no IPv6 here
		}
		for _, line := range strings.Split(string(b), "\n")[1:] {
			f := strings.Fields(line) // sl local remote state … inode
			if len(f) < 10 || !inodes[f[9]] || strings.HasPrefix(kind, "tcp") && f[3] != "0A" || strings.HasPrefix(kind, "udp") && f[3] != "07" {
				continue
			}
			found = append(found, procAddress(t, f[1]).String())
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// procAddress reads an address of /proc/net: words of the machine's byte order in hex, a colon, the port.
func procAddress(t *testing.T, s string) netip.AddrPort {
	t.Helper()
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil {
		t.Fatalf("address %q: %v %v", s, err, err2)
	}
	for i := 0; i+4 <= len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		t.Fatalf("address %q", s)
	}
	return netip.AddrPortFrom(a, uint16(n))
}

func descendants(t *testing.T, pid int) (all []int) {
	t.Helper()
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(pid)).Output()
	if err != nil && len(out) == 0 {
		return nil // none
	}
	for _, f := range strings.Fields(string(out)) {
		child, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(append(all, child), descendants(t, child)...)
	}
	return all
}

// Canaries stand for every kind of secret that the product is given; made-up ones, so that they can be looked for.
const (
	canaryToken    = "CANARYconsoletoken0123456789"
	canaryHook     = "CANARYhookpath0123456789"
	canaryHeader   = "CANARYauthorization0123456789"
	canaryPassword = "CANARYwrongpassword0123456789"
	canaryUserinfo = "CANARYuserinfo0123456789"
	canaryKey      = "CANARYsigningkey0123456789"
)

// exposed is an `up` that was given a canary wherever it takes a secret.
type exposed struct {
	*clitest.Installation
	t       *testing.T
	up      *clitest.Running
	env     []string
	secrets map[string]string // what it is: the secret
	said    map[string]string // who said it: what
	client  *http.Client      // trusts the gateway
	posted  *atomic.Int64
}

// Nothing of `up` and of the roles is reached from beyond this machine; no secret is said or written anywhere but in
// the files that are there for it, whatever goes wrong; and what devices are called makes no new metrics.
func TestExposure(t *testing.T) {
	e := &exposed{Installation: clitest.New(t), t: t, posted: &atomic.Int64{}, said: map[string]string{}}
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		// At first it is broken, then it refuses for good.
		w.WriteHeader([]int{http.StatusInternalServerError, http.StatusUnauthorized}[min(1, e.posted.Add(1)/3)])
	}))
	t.Cleanup(receiver.Close)
	e.plant(receiver.URL)
	e.start()
	t.Run("listeners", e.listeners)
	t.Run("labels", e.labels)
	t.Run("secrets", e.kept)
}

func (e *exposed) plant(receiver string) {
	text, err := os.ReadFile(e.Pipeline)
	if err != nil {
		e.t.Fatal(err)
	}
	hook := "    from: alerts\n    settings:\n      url: ${HEARTHLINE_ALERT_URL:-}\n      log: true\n"
	if !bytes.Contains(text, []byte(hook)) {
		e.t.Fatalf("pipeline.yaml holds no\n%s", hook)
	}
	e.Write(strings.Replace(string(text), hook, "    from: readings\n    settings:\n      url: ${HEARTHLINE_ALERT_URL:-}\n"+
		"      headers: {Authorization: \"Bearer ${HOOK_AUTH}\"}\n      secrets: [\"${HOOK_KEY}\"]\n      tries_max: 2\n      retry_wait_max: 100ms\n", 1))
	key := base64.StdEncoding.EncodeToString([]byte(canaryKey))
	e.env = []string{"HEARTHLINE_ALERT_URL=" + receiver + "/" + canaryHook, "HOOK_AUTH=" + canaryHeader, "HOOK_KEY=whsec_" + key, "HEARTHLINE_CONSOLE_TOKEN=" + canaryToken}
	for _, v := range e.env { // of what is started without more ado, too
		name, value, _ := strings.Cut(v, "=")
		e.t.Setenv(name, value)
	}
	e.secrets = map[string]string{"console token": canaryToken, "webhook path": canaryHook, "webhook header": canaryHeader, "a wrong password": canaryPassword,
		"a password in a URL": canaryUserinfo, "webhook key": key, "webhook key, decoded": canaryKey}
}

func (e *exposed) start() {
	e.up = e.Up("--no-homes", "--verbose")
	var made struct{ Admin, Writer, Dashboard string }
	passwords := map[string]string{}
	for file, into := range map[string]any{"clickhouse/secrets.json": &made, "gateway/passwords.json": &passwords} {
		b, err := os.ReadFile(filepath.Join(e.Data, file))
		if err != nil {
			e.t.Fatal(err)
		}
		if err := json.Unmarshal(b, into); err != nil {
			e.t.Fatal(err)
		}
	}
	e.secrets["ClickHouse admin"], e.secrets["ClickHouse writer"], e.secrets["ClickHouse dashboard"] = made.Admin, made.Writer, made.Dashboard
	e.secrets["demo's password"] = passwords["demo"]
	for what, s := range e.secrets {
		if len(s) < 16 {
			e.t.Fatalf("%s: %q is nothing to look for", what, s)
		}
	}
	ca, err := os.ReadFile(filepath.Join(e.Data, "gateway", "ca.pem"))
	if err != nil {
		e.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	e.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	e.t.Cleanup(e.client.CloseIdleConnections)
}

// role starts a role beside the running `up`, with its broker and its ClickHouse, and folders and addresses of its own.
func (e *exposed) role(password string, args ...string) (r *clitest.Running, ops, mqtt, http string) {
	ops, mqtt, http = clitest.FreeAddr(e.t), clitest.FreeAddr(e.t), clitest.FreeAddr(e.t)
	c := &clitest.Cluster{Installation: e.Installation, Env: append(slices.Clone(e.env), "HEARTHLINE_KAFKA="+e.Kafka, "HEARTHLINE_CLICKHOUSE="+e.ClickHouseTCP,
		"HEARTHLINE_CLICKHOUSE_USER=writer", "HEARTHLINE_CLICKHOUSE_PASSWORD="+password, "HEARTHLINE_MQTT="+mqtt, "HEARTHLINE_HTTP="+http,
		"HEARTHLINE_CERTIFICATE="+filepath.Join(e.Data, "gateway", "server.pem"), "HEARTHLINE_KEY="+filepath.Join(e.Data, "gateway", "server-key.pem"),
		"HEARTHLINE_CREDENTIALS="+filepath.Join(e.Data, "gateway", "credentials.yaml"), "HEARTHLINE_INSTANCE=beside", "HEARTHLINE_OPS="+ops)}
	r = c.Role(append(args, "--verbose")...)
	return r, ops, mqtt, http
}

func (e *exposed) listeners(t *testing.T) {
	at := func(r *clitest.Running, want ...string) {
		t.Helper()
		want = slices.Clone(want)
		slices.Sort(want)
		var got []string
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if got = listening(t, r.Cmd.Process.Pid); slices.Equal(got, want) {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v listens on %v; want %v", r.Cmd.Args[1:3], got, want)
		}
		for _, a := range got {
			if !netip.MustParseAddrPort(a).Addr().Unmap().IsLoopback() {
				t.Errorf("%v listens on %s, which others than this machine reach", r.Cmd.Args[1:3], a)
			}
		}
	}
	at(e.up, e.Kafka, e.MQTT, e.HTTP, e.Console, e.ClickHouseHTTP, e.ClickHouseTCP)
	for _, verb := range [][]string{{"gateway"}, {"stage", "score"}, {"sink", "parquet"}, {"sink", "clickhouse"}} {
		r, _, mqtt, http := e.role(e.secrets["ClickHouse writer"], verb...)
		want := []string{r.Cmd.Args[len(r.Cmd.Args)-1]} // --ops ADDRESS
		if verb[0] == "gateway" {
			want = append(want, mqtt, http)
		}
		at(r, want...)
		if status, _ := e.ask(t, "http://"+want[0]+"/api/status", ""); status != http401 {
			t.Errorf("%v shows its status to who has no token: %d", verb, status)
		}
		if status, _ := e.ask(t, "http://"+want[0]+"/healthz", ""); status != 200 {
			t.Errorf("%v does not show its health: %d", verb, status)
		}
		e.collect(want[0], strings.Join(verb, " "))
		r.Kill()
		e.said[strings.Join(verb, " ")] = r.Out.String()
	}
	// On other addresses than loopback: refused, before anything is started.
	for wrong, says := range map[string]string{"HEARTHLINE_CONSOLE=0.0.0.0:" + portOf(e.Console): "HEARTHLINE_CONSOLE_TOKEN", "HEARTHLINE_CONSOLE=:" + portOf(e.Console): "HEARTHLINE_CONSOLE_TOKEN"} {
		cmd := exec.Command(e.Binary, "up", "--plain", "--no-homes", "--pipeline", e.Pipeline, "--data", t.TempDir())
		cmd.Env = append(os.Environ(), "HEARTHLINE_CONSOLE_TOKEN=", wrong)
		out, err := cmd.CombinedOutput()
		if exit := (*exec.ExitError)(nil); err == nil || !asExit(err, &exit) || exit.ExitCode() != exitUsage || !strings.Contains(string(out), says) {
			t.Errorf("%s without a token: %v\n%s", wrong, err, out)
		}
	}
}

const http401 = http.StatusUnauthorized

func portOf(addr string) string { _, port, _ := net.SplitHostPort(addr); return port }

func asExit(err error, to **exec.ExitError) bool {
	x, ok := err.(*exec.ExitError)
	*to = x
	return ok
}

func (e *exposed) ask(t *testing.T, url, token string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, fmt.Sprint(res.Header) + string(b)
}

// collect keeps what a process shows to who may see everything.
func (e *exposed) collect(addr, who string) {
	for _, path := range []string{"/", "/metrics", "/api/graph", "/api/status", "/healthz", "/readyz", "/api/tap?stream=nothing"} {
		_, body := e.ask(e.t, "http://"+addr+path, canaryToken)
		e.said[who+" "+path] += body
	}
}

// send posts rows as demo and gives the answer.
func (e *exposed) send(t *testing.T, password, media, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, "https://"+e.HTTP+"/v1/telemetry", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("demo", password)
	req.Header.Set("Content-Type", media)
	req.Header.Set("User-Agent", "agent-"+strconv.Itoa(len(body)))
	res, err := e.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

const ndjsonMedia = "application/x-ndjson"

var (
	series     = regexp.MustCompile(`(?m)^[a-z_]+(\{[^\n]*\})? `)
	labelValue = regexp.MustCompile(`="[^"]*"`)
)

func (e *exposed) labels(t *testing.T) {
	good := e.secrets["demo's password"]
	send := func(from, to int) {
		t.Helper()
		var b strings.Builder
		for i := from; i < to; i++ {
			name := hostile[i%len(hostile)]
			row, err := json.Marshal(map[string]any{"device": fmt.Sprintf("strange%d", i), "metric": fmt.Sprintf("strange%d", i), "value": i, "unit": fmt.Sprintf("strange%d", i),
				"seq": i})
			if err != nil {
				t.Fatal(err)
			}
			b.Write(append(row, '\n'))
			named, err := json.Marshal(map[string]any{"device": name, "metric": "temperature", "value": 20, "unit": "°C", "seq": i})
			if err != nil {
				t.Fatal(err)
			}
			b.Write(append(named, '\n'))
		}
		if status, answer := e.send(t, good, ndjsonMedia, b.String()); status != 200 {
			t.Fatalf("%d %s", status, answer)
		}
	}
	scrape := func(dead int) []string {
		e.Eventually("dead letters", strconv.Itoa(dead), func() string { return e.Query("SELECT count() FROM dead WHERE body LIKE '%strange%'")[0] })
		_, body := e.ask(t, "http://"+e.Console+"/metrics", canaryToken)
		if strings.Contains(body, "strange") || strings.Contains(body, "demo") {
			t.Error("metrics speak of homes or devices")
		}
		return series.FindAllString(body, -1)
	}
	send(0, len(hostile)) // every kind of trouble once
	before := scrape(len(hostile))
	send(len(hostile), 400)
	after := scrape(400)
	known := map[string]bool{"webhook.dead": true} // which the receiver's refusals fill by and by
	for _, s := range before {
		for _, v := range labelValue.FindAllString(s, -1) {
			known[strings.Trim(v, `="`)] = true
		}
	}
	for _, s := range after {
		for _, v := range labelValue.FindAllString(s, -1) {
			if v = strings.Trim(v, `="`); !known[v] {
				t.Errorf("after 400 devices, metrics and units that nobody knows there is a label %q: %s", v, s)
			}
		}
	}
	if len(before) < 100 || len(after) > len(before)+50 {
		t.Errorf("%d series before 400 devices, metrics and units that nobody knows, %d after", len(before), len(after))
	}
}

// kept makes everything go wrong that could make somebody say a secret, then looks for them.
func (e *exposed) kept(t *testing.T) {
	if e.posted.Load() == 0 {
		e.Eventually("rows posted", "true", func() string { return strconv.FormatBool(e.posted.Load() > 4) })
	}
	if status, answer := e.send(t, canaryPassword, ndjsonMedia, `{"device": "lamp", "metric": "power", "value": 1}`); status != http401 {
		t.Errorf("a wrong password: %d %s", status, answer)
	} else {
		e.said["answer to a wrong password"] = answer
	}
	e.said["answer to a wrong MQTT password"] = string(e.mqttConnect(t, "demo", canaryPassword))
	_, e.said["answer to a wrong token"] = e.ask(t, "http://"+e.Console+"/api/status", canaryPassword)
	_, e.said["answer to a token in the address"] = e.ask(t, "http://"+e.Console+"/api/tap?token="+canaryToken, "")
	for _, verb := range [][]string{{"lint"}, {"graph"}, {"graph", "--format", "svg"}, {"graph", "--format", "dot"}, {"render", "k8s"}, {"render", "compose"}, {"tap", "nothing"}, {"plan"}} {
		e.verb(verb)
	}
	// Refused settings that hold a secret where none belongs.
	e.verb([]string{"lint"}, "HEARTHLINE_ALERT_URL=https://me:"+canaryUserinfo+"@hooks.example/x")
	e.verb([]string{"lint"}, "HEARTHLINE_ALERT_URL=ht!tp://me:"+canaryUserinfo+"@hooks.example/%zz")
	e.verb([]string{"lint"}, "HEARTHLINE_KAFKA=me:"+canaryUserinfo+"@127.0.0.1:9092")
	e.verb([]string{"lint"}, "HEARTHLINE_CLICKHOUSE=clickhouse://me:"+canaryUserinfo+"@127.0.0.1:9000")
	e.verb([]string{"sink", "clickhouse"}, "HEARTHLINE_CLICKHOUSE=clickhouse://me:"+canaryUserinfo+"@127.0.0.1:9000", "HEARTHLINE_KAFKA="+e.Kafka)
	e.verb([]string{"lint"}, "HOOK_KEY=whsec_"+canaryPassword+"!")
	e.verb([]string{"lint"}, "HOOK_AUTH="+canaryHeader+"\nX-Injected: yes")
	e.verb([]string{"up"}, "HEARTHLINE_CONSOLE_TOKEN=CANARYshort")
	e.secrets["short token"] = "CANARYshort"
	e.collect(e.Console, "up")
	for _, line := range e.Query("SELECT * FROM dead FORMAT JSONEachRow") {
		e.said["dead letters"] += line
	}
	if !strings.Contains(e.said["dead letters"], "strange") || !strings.Contains(e.said["up /metrics"], "hearthline_rows_total") {
		t.Error("there is nothing to look through")
	}
	// Last, because the embedded engine does not survive it: a wrong password at ClickHouse's native door.
	r, _, _, _ := e.role(canaryPassword, "sink", "clickhouse")
	if code := r.Exit(time.Minute); code != exitFailed || !strings.Contains(r.Out.String(), "password") {
		t.Errorf("a sink with a wrong password ends with %d", code)
	}
	e.said["sink with a wrong password"] = r.Out.String()
	for _, pid := range append(descendants(t, e.up.Cmd.Process.Pid), e.up.Cmd.Process.Pid) {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		e.said["command line, which every user of the machine reads"] += string(line) + " "
	}
	e.up.Kill()
	e.said["up"] = e.up.Out.String()
	for who, text := range e.said {
		for what, secret := range e.secrets {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s: it says %s: …%s…", who, what, text[max(0, i-200):min(len(text), i+60)])
			}
		}
	}
	e.files(t)
}

// files looks through what is on disk. The files that are there for a secret are readable for their owner alone.
func (e *exposed) files(t *testing.T) {
	own := map[string]bool{"clickhouse/secrets.json": true, "gateway/passwords.json": true}
	n := 0
	err := filepath.WalkDir(e.Data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, _ := filepath.Rel(e.Data, path)
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		n++
		if strings.Contains(name, "strange") || strings.Contains(name, "outside") || strings.Contains(name, "demo") {
			t.Errorf("the file %s is named by what a device said", name)
		}
		if own[name] || strings.Contains(name, "key") || strings.Contains(string(b), "PRIVATE KEY") {
			if st, err := d.Info(); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("%s: mode %v (%v); want 0600", name, st.Mode(), err)
			}
		}
		for what, secret := range e.secrets {
			if !own[name] && bytes.Contains(b, []byte(secret)) {
				t.Errorf("the file %s holds %s", name, what)
			}
		}
		return nil
	})
	if err != nil || n < 20 {
		t.Errorf("%d files in %s: %v", n, e.Data, err)
	}
	if st, err := os.Stat(e.Data); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the data folder has mode %v (%v); want 0700", st.Mode(), err)
	}
}

// verb runs a verb that ends by itself.
func (e *exposed) verb(args []string, env ...string) {
	cmd := exec.CommandContext(e.t.Context(), e.Binary, append(args, "--verbose", "--pipeline", e.Pipeline, "--data", filepath.Join(e.Dir, "other"))...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = time.Second
	stop := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer stop.Stop()
	out, _ := cmd.CombinedOutput() // whether it fails is not asked here, but what it says
	if len(out) == 0 {
		e.t.Errorf("%v says nothing", args)
	}
	e.said[fmt.Sprint(args, " with ", strings.Join(env, " "))] = string(out)
}

// mqttConnect tries to come in and gives the answer.
func (e *exposed) mqttConnect(t *testing.T, user, password string) []byte {
	t.Helper()
	c, err := tls.Dial("tcp", e.MQTT, e.client.Transport.(*http.Transport).TLSClientConfig.Clone())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	field := func(b []byte, s string) []byte { return append(append(b, byte(len(s)>>8), byte(len(s))), s...) }
	body := append(field(nil, "MQTT"), 5, 0xc2, 0, 60, 0)
	body = field(field(field(body, "me"), user), password)
	if _, err := c.Write(append([]byte{0x10, byte(len(body))}, body...)); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	answer, _ := io.ReadAll(c)
	if len(answer) < 4 || answer[0] != 0x20 || answer[3] == 0 {
		t.Errorf("a wrong password over MQTT is answered %x", answer)
	}
	return answer
}
