package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/cli/clitest"
)

// editor speaks the Debug Adapter Protocol, as VS Code does (https://microsoft.github.io/debug-adapter-protocol).
type editor struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
	seq  int
}

// message is a response or an event.
type message struct {
	Type, Event, Command, Message string
	RequestSeq                    int `json:"request_seq"`
	Success                       bool
	Body                          map[string]any
}

func (e *editor) send(command string, arguments any) int {
	e.t.Helper()
	e.seq++
	body, err := json.Marshal(map[string]any{"seq": e.seq, "type": "request", "command": command, "arguments": arguments})
	if err != nil {
		e.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(e.conn, "Content-Length: %d\r\n\r\n%s", len(body), body); err != nil {
		e.t.Fatalf("%s: %v", command, err)
	}
	return e.seq
}

// until reads messages up to one that fits.
func (e *editor) until(what string, fits func(message) bool) message {
	e.t.Helper()
	for {
		head, err := textproto.NewReader(e.in).ReadMIMEHeader()
		if err != nil {
			e.t.Fatalf("wait for %s: %v", what, err)
		}
		n, err := strconv.Atoi(head.Get("Content-Length"))
		if err != nil {
			e.t.Fatal(err)
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(e.in, body); err != nil {
			e.t.Fatal(err)
		}
		var m message
		if err := json.Unmarshal(body, &m); err != nil {
			e.t.Fatalf("%v: %s", err, body)
		}
		if m.Type == "response" && !m.Success {
			e.t.Fatalf("%s: %s", m.Command, body)
		}
		if fits(m) {
			return m
		}
	}
}

func (e *editor) event(name string) message {
	e.t.Helper()
	return e.until("the event "+name, func(m message) bool { return m.Event == name })
}

func (e *editor) ask(command string, arguments any) map[string]any {
	e.t.Helper()
	seq := e.send(command, arguments)
	return e.until("the answer to "+command, func(m message) bool { return m.Type == "response" && m.RequestSeq == seq }).Body
}

// lookedIntoByAnEditor attaches to pickyStage at work, stops in it, and reads a variable.
func lookedIntoByAnEditor(t *testing.T, i *clitest.Installation, file string) {
	t.Helper()
	refused := i.Start("replay", "dead", "picky", "--debugpy=0.0.0.0:5678")
	if code := refused.Exit(time.Minute); code != exitUsage || !strings.Contains(refused.Out.String(), "want an address of this machine") {
		t.Errorf("a debugger for everybody: exit code %d, %s", code, refused.Out.String())
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	r := i.Start("replay", "dead", "picky", "--debugpy="+addr)
	r.Expect("picky waits for a debugger at "+addr, time.Minute)
	e := &editor{t: t}
	for deadline := time.Now().Add(3 * time.Minute); e.conn == nil; time.Sleep(50 * time.Millisecond) { // debugpy may have to be installed
		if e.conn, err = net.Dial("tcp", addr); err != nil && time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	defer e.conn.Close()
	e.in = bufio.NewReader(e.conn)
	if err := e.conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	e.ask("initialize", map[string]any{"adapterID": "debugpy", "linesStartAt1": true, "pathFormat": "path"})
	e.send("attach", map[string]any{"justMyCode": false})
	e.event("initialized")
	e.ask("setBreakpoints", map[string]any{"source": map[string]any{"path": file}, "breakpoints": []any{map[string]any{"line": 8}}})
	e.send("configurationDone", map[string]any{})
	thread := e.event("stopped").Body["threadId"]
	frames, _ := e.ask("stackTrace", map[string]any{"threadId": thread})["stackFrames"].([]any)
	if len(frames) == 0 {
		t.Fatal("it stopped nowhere")
	}
	top, _ := frames[0].(map[string]any)
	if top["name"] != "process" || top["line"] != 8.0 {
		t.Errorf("it stopped in %v, line %v", top["name"], top["line"])
	}
	if said := e.ask("evaluate", map[string]any{"expression": "readings.num_rows > 0", "frameId": top["id"], "context": "repl"}); said["result"] != "True" {
		t.Errorf("the rows: %v", said)
	}
	e.ask("setBreakpoints", map[string]any{"source": map[string]any{"path": file}, "breakpoints": []any{}})
	e.ask("disconnect", map[string]any{"terminateDebuggee": false})
	if code := r.Exit(time.Minute); code != exitChanges || !strings.Contains(r.Out.String(), "nobody told me of light") {
		t.Errorf("exit code %d:\n%s", code, r.Out.String())
	}
}
