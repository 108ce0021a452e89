package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// Command is what somebody asks of a device.
type Command struct {
	ID        string          `json:"id"`
	Home      string          `json:"-"`
	Device    string          `json:"-"`
	Name      string          `json:"name"`
	Arguments json.RawMessage `json:"arguments"`
	Deadline  time.Time       `json:"deadline"`
}

const (
	commandsAtOnce = 16
	executedMax    = 10_000 // commands that are remembered until their deadline; beyond it none is executed
)

// subscribe asks for the commands and deltas.
func (s *mqttSender) subscribe(ctx context.Context) error {
	all := s.c.filters()
	if len(all) == 0 {
		return nil
	}
	ack, err := s.paho.Subscribe(ctx, &paho.Subscribe{Subscriptions: all})
	if err != nil {
		return fmt.Errorf("subscribe to what the hub is told: %w", err)
	}
	for i, code := range ack.Reasons {
		if code >= codeUnspecified {
			return fmt.Errorf("subscribe to %s: %s", all[i].Topic, reasonOf(code, ""))
		}
	}
	return nil
}

// heard takes a command, or a delta. The engine acknowledges it when this returns, so it is noted first, and executed beside.
func (s *mqttSender) heard(p paho.PublishReceived) (bool, error) {
	parts := strings.Split(p.Packet.Topic, "/")
	if len(parts) == 6 && parts[0] == "homes" && parts[2] == "devices" && parts[4] == "shadow" && parts[5] == "delta" && s.c.Delta != nil {
		s.differs(parts[1], parts[3], p.Packet.Payload)
		return true, nil
	}
	if len(parts) != 5 || parts[0] != "homes" || parts[2] != "devices" || parts[4] != "commands" {
		return false, nil
	}
	cmd := Command{Home: parts[1], Device: parts[3]}
	if err := json.Unmarshal(p.Packet.Payload, &cmd); err != nil || cmd.ID == "" || strings.ContainsAny(cmd.ID, "/+#") {
		s.c.Logger.Error("hearthline client: a command that cannot be understood", "topic", p.Packet.Topic, "error", err)
		return true, nil
	}
	if now := time.Now(); !cmd.Deadline.After(now) {
		return true, nil // whoever asked has been told that it expired
	}
	known, err := s.c.done.begin(cmd.Home+"/"+cmd.Device+"/"+cmd.ID, cmd.Deadline)
	switch {
	case err != nil:
		return true, s.c.say(&cmd, stateFailed, err.Error())
	case known == stateBegun:
		return true, nil // it is being executed
	case known != "":
		return true, s.c.say(&cmd, known, "") // the word of it was lost
	}
	s.c.orders.Go(func() { s.c.execute(&cmd) })
	return true, nil
}

// execute does a command and says what came of it.
func (c *Client) execute(cmd *Command) {
	ctx, cancel := context.WithDeadline(c.life, cmd.Deadline)
	defer cancel()
	err := ctx.Err() // it may have waited for its turn
	if err == nil {
		err = c.guarded(ctx, cmd)
	}
	if err := c.report(cmd, err); err != nil {
		c.Logger.Error("hearthline client: what came of a command cannot be said", "command", cmd.ID, "error", err)
	}
}

// guarded keeps a handler's panic from ending the hub.
func (c *Client) guarded(ctx context.Context, cmd *Command) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return c.Command(ctx, *cmd)
}

func (c *Client) report(cmd *Command, failure error) error {
	state, detail := stateExecuted, ""
	if failure != nil {
		state, detail = stateFailed, failure.Error()
	}
	return errors.Join(c.done.end(cmd.Home+"/"+cmd.Device+"/"+cmd.ID, state), c.say(cmd, state, detail))
}

// say puts the word of a command into the outbox: it is sent until it is acknowledged, as readings are.
func (c *Client) say(cmd *Command, state, detail string) error {
	return c.box.put([]*entry{{Home: cmd.Home, Device: cmd.Device, Topic: "homes/" + cmd.Home + "/devices/" + cmd.Device + "/commands/" + cmd.ID + "/status",
		Payload: encode(struct {
			State    string    `json:"state"`
			Detail   string    `json:"detail,omitempty"`
			Executed time.Time `json:"executed_at"`
		}{state, detail, time.Now().UTC()})}})
}

// States of a command that was heard.
const (
	stateBegun    = "begun"
	stateExecuted = "executed"
	stateFailed   = "failed"
)

// executed remembers which commands were begun, until their deadline: none is executed twice. With a folder it does so over a
// restart too. A command that was begun when the process died has failed: nobody knows whether it was done.
type executed struct {
	mu   sync.Mutex
	path string // "" without a folder
	all  map[string]executedCommand
}

type executedCommand struct {
	State    string    `json:"state"`
	Deadline time.Time `json:"deadline"`
}

func openExecuted(dir string) (*executed, error) {
	e := &executed{all: map[string]executedCommand{}}
	if dir == "" {
		return e, nil
	}
	e.path = filepath.Join(dir, "commands.json")
	b, err := os.ReadFile(e.path)
	if errors.Is(err, os.ErrNotExist) {
		return e, nil
	}
	if err == nil {
		err = json.NewDecoder(bytes.NewReader(b)).Decode(&e.all)
	}
	if err != nil {
		return nil, fmt.Errorf("commands that were executed: %w", err)
	}
	for id, c := range e.all {
		if c.State == stateBegun {
			e.all[id] = executedCommand{stateFailed, c.Deadline}
		}
	}
	return e, nil
}

var errTooManyCommands = errors.New("too many commands whose deadline has not passed")

// begin notes a command, durably, before it is executed. known is its state if it was noted before.
func (e *executed) begin(id string, deadline time.Time) (known string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c, ok := e.all[id]; ok {
		return c.State, nil
	}
	now := time.Now()
	for old, c := range e.all {
		if c.Deadline.Before(now) {
			delete(e.all, old)
		}
	}
	if len(e.all) >= executedMax {
		return "", errTooManyCommands
	}
	e.all[id] = executedCommand{stateBegun, deadline}
	return "", e.save()
}

func (e *executed) end(id, state string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.all[id]
	c.State = state
	e.all[id] = c
	return e.save()
}

// save writes the file anew: beside it, to the disk, and then into its place. Callers hold mu.
func (e *executed) save() error {
	if e.path == "" {
		return nil
	}
	f, err := os.OpenFile(e.path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) // #nosec G304 -- of the folder that the settings name
	if err != nil {
		return err
	}
	_, err = f.Write(encode(e.all))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(e.path+".new", e.path)
}
