package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"hearthline/ingest/api"
	"hearthline/ingest/identity"
	"hearthline/ingest/table"
)

// Limits of the HTTP API.
const (
	listMax     = 1000 // commands of one answer; the newest
	acceptWait  = 10 * time.Second
	requestMore = 4 << 10 // bytes of a request beside its arguments
)

// Routes adds the API to a door.
func (c *Commands) Routes(mux *http.ServeMux, who api.Authenticate) {
	for pattern, serve := range map[string]api.Handler{
		"POST /v1/devices/{device}/commands":            c.post,
		"GET /v1/devices/{device}/commands":             c.list,
		"GET /v1/devices/{device}/commands/{id}":        c.get,
		"GET /v1/devices/{device}/commands/{id}/events": c.events,
		"GET /v1/devices/{device}/commands/events":      c.events,
		"GET /v1/homes/{home}/commands":                 c.list,
		"GET /v1/homes/{home}/commands/events":          c.events,
	} {
		api.Route(mux, pattern, who, serve, problemOf)
	}
}

// problemOf is the answer to a request that failed.
func problemOf(err error) *api.Problem {
	var p *api.Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, ErrInvalid):
		return api.Refused(http.StatusBadRequest, "command", err.Error())
	case errors.Is(err, ErrConflict):
		return api.Refused(http.StatusConflict, "id-used", err.Error())
	case errors.Is(err, ErrTooMany):
		return api.Later(http.StatusTooManyRequests, "too-many", err.Error())
	}
	return api.Later(http.StatusServiceUnavailable, "unavailable", "the log does not take the command in time; send it again, with its id")
}

func (c *Commands) post(w http.ResponseWriter, r *http.Request, id *identity.Identity) error {
	limit := int64(c.ArgumentsMax*2 + requestMore) // arguments may come with spaces between them
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return api.Refused(http.StatusRequestEntityTooLarge, "too-large", fmt.Sprintf("the body cannot be read, or has more than %d bytes", limit))
	}
	asked, err := ParseRequest(data)
	if err != nil {
		return err
	}
	home, err := api.HomeOf(r, id, asked.Home)
	if err != nil {
		return err
	}
	device := r.PathValue("device")
	if err := api.May(id.MayCommand(home, device)); err != nil {
		return err
	}
	if err := api.Spend(id); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), acceptWait)
	defer cancel()
	cmd, created, err := c.Submit(ctx, asked, home, device, id.User, nil)
	if err != nil {
		return err
	}
	status := http.StatusOK // it was known
	if created {
		status = http.StatusAccepted
	}
	w.Header().Set("Location", fmt.Sprintf("/v1/devices/%s/commands/%s?home=%s", url.PathEscape(device), cmd.ID, url.QueryEscape(home)))
	api.Answer(w, status, cmd)
	return nil
}

func (c *Commands) get(w http.ResponseWriter, r *http.Request, id *identity.Identity) error {
	home, err := api.HomeOf(r, id, "")
	if err != nil {
		return err
	}
	if err := api.May(id.MaySee(home, r.PathValue("device"))); err != nil {
		return err
	}
	cmd, ok := c.Get(home, r.PathValue("device"), r.PathValue("id"))
	if !ok {
		return api.Refused(http.StatusNotFound, "not-found", "no such command, or it ended long ago")
	}
	api.Answer(w, http.StatusOK, cmd)
	return nil
}

// list answers the newest commands, the newest first.
func (c *Commands) list(w http.ResponseWriter, r *http.Request, id *identity.Identity) error {
	home, device, err := c.place(r, id)
	if err != nil {
		return err
	}
	limit := 100
	if text := r.URL.Query().Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > listMax {
			return api.Refused(http.StatusBadRequest, "limit", fmt.Sprintf("limit is %.20q; want 1 to %d", text, listMax))
		}
	}
	all := []*Command{}
	for _, rec := range c.Table.Scan(prefixOf(home, device, "")) {
		if cmd, err := decode(rec.Value); err == nil && id.MaySee(home, cmd.Device) == nil {
			all = append(all, cmd)
		}
	}
	slices.SortFunc(all, func(a, b *Command) int { return b.Created.Compare(a.Created) })
	api.Answer(w, http.StatusOK, map[string]any{"commands": all[:min(limit, len(all))]})
	return nil
}

// Standing gives the commands of a home that have not ended, of the devices that may says yes of.
func (c *Commands) Standing(home string, may func(device string) bool) []*Command {
	all := []*Command{}
	for _, rec := range c.Table.Scan(home + "/") {
		if stateOf(rec.Value).Final() {
			continue
		}
		if cmd, err := decode(rec.Value); err == nil && may(cmd.Device) {
			all = append(all, cmd)
		}
	}
	return all
}

// Event gives what a record of the table is told as in a live stream: the command; nil when it cannot be read.
func (c *Commands) Event(rec table.Record) (device string, event any) {
	cmd, err := decode(rec.Value)
	if err != nil {
		return "", nil // said in the log when it came
	}
	return cmd.Device, cmd
}

// place is what a request speaks of: a home, and perhaps a device of it.
func (c *Commands) place(r *http.Request, id *identity.Identity) (home, device string, err error) {
	device = r.PathValue("device")
	if home, err = api.HomeOf(r, id, ""); err != nil {
		return "", "", err
	}
	return home, device, api.May(id.MaySee(home, device))
}

func prefixOf(home, device, id string) string {
	prefix := home + "/"
	if device != "" {
		prefix += device + "/"
	}
	return prefix + id
}

// events streams the steps of commands (Server-Sent Events; WHATWG HTML, section 9.2). An event's id is its offset in the
// table. A client that comes back with Last-Event-ID is told how far each command has come since; steps in between are
// left out.
func (c *Commands) events(w http.ResponseWriter, r *http.Request, id *identity.Identity) error {
	home, device, err := c.place(r, id)
	if err != nil {
		return err
	}
	since := int64(-1)
	if text := r.Header.Get("Last-Event-ID"); text != "" {
		if since, err = strconv.ParseInt(text, 10, 64); err != nil {
			return api.Refused(http.StatusBadRequest, "last-event-id", "Last-Event-ID is not one of this stream")
		}
	}
	s := &stream{c: c, id: id, home: home, one: r.PathValue("id"), since: since}
	s.prefix = prefixOf(home, device, s.one)
	if _, ok := c.Table.Get(s.prefix); s.one != "" && !ok {
		return api.Refused(http.StatusNotFound, "not-found", "no such command, or it ended long ago")
	}
	if c.streams.Add(1) > int64(c.StreamsMax) {
		c.streams.Add(-1)
		return api.Later(http.StatusServiceUnavailable, "unavailable", "too many event streams are open here")
	}
	defer c.streams.Add(-1)
	if s.to, err = api.OpenEvents(w, id); err != nil {
		return err
	}
	_ = s.run(r.Context()) // its reader is gone, or may not read on: there is nobody to tell
	return nil
}

// stream is one event stream.
type stream struct {
	c      *Commands
	to     *api.Events
	id     *identity.Identity
	home   string
	one    string // id of the only command; "" for many
	prefix string
	since  int64 // offset of the last event; -1: none
	joined bool  // what stood at the beginning has been sent
}

var errDone = errors.New("nothing more comes")

func (s *stream) run(ctx context.Context) error {
	for {
		watch := s.c.Table.Watch(s.prefix)
		err := s.follow(ctx, watch)
		watch.Close()
		if err != nil {
			return err
		}
	}
}

// follow sends what stands, and then what changes, until something fails; nil when it was too slow, and looks anew.
func (s *stream) follow(ctx context.Context, watch *table.Watcher) error {
	standing := s.c.Table.Scan(s.prefix)
	slices.SortFunc(standing, func(a, b table.Record) int { return int(a.Offset - b.Offset) })
	first := s.since < 0 && !s.joined
	for _, rec := range standing {
		if first && s.one == "" && stateOf(rec.Value).Final() {
			continue // who looks on from now on is told what is under way
		}
		if err := s.send(rec); err != nil {
			return err
		}
	}
	s.joined = true
	if err := s.to.Comment("following"); err != nil {
		return err
	}
	alive := time.NewTicker(api.AliveEvery)
	defer alive.Stop()
	for {
		select {
		case change, ok := <-watch.C:
			if !ok {
				return nil
			}
			if err := s.send(change.New); err != nil {
				return err
			}
		case <-alive.C:
			if err := s.to.Comment("alive"); err != nil {
				return err
			}
		case <-s.c.Draining:
			return errDone
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *stream) send(rec table.Record) error {
	if rec.Value == nil || rec.Offset <= s.since || s.one != "" && rec.Key != s.prefix {
		return nil
	}
	cmd, err := decode(rec.Value)
	if err != nil {
		return nil // said in the log when it came
	}
	if s.id.MaySee(s.home, cmd.Device) != nil {
		return nil
	}
	raw, err := json.Marshal(cmd)
	if err != nil {
		return err
	}
	if err := s.to.Send("command", strconv.FormatInt(rec.Offset, 10), raw); err != nil {
		return err
	}
	s.since = rec.Offset
	if s.one != "" && cmd.State.Final() {
		return errDone
	}
	return nil
}
