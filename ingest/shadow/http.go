package shadow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"hearthline/ingest/api"
	"hearthline/ingest/identity"
	"hearthline/ingest/reason"
	"hearthline/ingest/table"
)

// requestMore is what a request may have beside its patch, bytes.
const requestMore = 4 << 10

// Routes adds the API to a door.
func (s *Shadows) Routes(mux *http.ServeMux, who api.Authenticate) {
	for pattern, serve := range map[string]api.Handler{
		"GET /v1/devices/{device}/shadow":    s.getRequest,
		"PATCH /v1/devices/{device}/shadow":  s.patchRequest,
		"DELETE /v1/devices/{device}/shadow": s.deleteRequest,
		"GET /v1/homes/{home}/shadows":       s.listRequest,
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
		return api.Refused(http.StatusBadRequest, "shadow", err.Error())
	case errors.Is(err, ErrVersion):
		return api.Refused(http.StatusPreconditionFailed, "version", err.Error())
	case errors.Is(err, ErrTooMany):
		return api.Refused(http.StatusTooManyRequests, "too-many", err.Error())
	case errors.Is(err, table.ErrFull):
		return api.Later(http.StatusServiceUnavailable, "full", "the gateways hold as many shadows as they may: no new ones are taken")
	case errors.Is(err, ErrNone):
		return api.Refused(http.StatusNotFound, "not-found", "nothing was reported or desired of this device yet")
	}
	return api.Later(http.StatusServiceUnavailable, "unavailable", "the log does not take the change in time; look, and send it again")
}

// place is the device that a request speaks of.
func place(r *http.Request, id *identity.Identity, body string) (home, device string, err error) {
	if home, err = api.HomeOf(r, id, body); err != nil {
		return "", "", err
	}
	return home, r.PathValue("device"), nil
}

func (s *Shadows) getRequest(w http.ResponseWriter, r *http.Request, id *identity.Identity) error {
	home, device, err := place(r, id, "")
	if err != nil {
		return err
	}
	if err := api.May(id.MaySee(home, device)); err != nil {
		return err
	}
	return s.answer(w, home, device)
}

// answer gives the document. Its ETag is the version of desired, which PATCH changes.
func (s *Shadows) answer(w http.ResponseWriter, home, device string) error {
	d, ok, err := s.Get(home, device)
	switch {
	case err != nil:
		return err
	case !ok:
		return ErrNone
	}
	w.Header().Set("ETag", strconv.Quote(strconv.FormatInt(d.Metadata.Desired.Version, 10)))
	api.Answer(w, http.StatusOK, d)
	return nil
}

func (s *Shadows) listRequest(w http.ResponseWriter, r *http.Request, id *identity.Identity) error {
	home := r.PathValue("home")
	if err := api.May(id.MaySee(home, "")); err != nil {
		return err
	}
	all, err := s.List(home, func(device string) bool { return id.MaySee(home, device) == nil })
	if err != nil {
		return err
	}
	api.Answer(w, http.StatusOK, map[string]any{"shadows": all})
	return nil
}

// patch is the body of a PATCH: a merge patch to what GET answers, of which one half is changed.
type patch struct {
	Desired  json.RawMessage `json:"desired"`
	Reported json.RawMessage `json:"reported"`
	Version  *int64          `json:"version"` // that the half must have, instead of If-Match
	Home     string          `json:"home"`    // of those that have several
}

func readPatch(data []byte) (*patch, error) {
	if deep := depth(data); deep > depthHeldMax+1 {
		return nil, invalid("nested %d deep", deep)
	}
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.DisallowUnknownFields()
	p := &patch{}
	if err := d.Decode(p); err != nil {
		return nil, invalid("%v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, invalid("something stands behind the object")
	}
	if (p.Desired == nil) == (p.Reported == nil) {
		return nil, invalid("want desired, or reported: one of them")
	}
	return p, nil
}

// update is what a patch asks for.
func (p *patch) update(r *http.Request) (Update, error) {
	u := Update{Half: Desired, Patch: p.Desired, Version: AnyVersion}
	if p.Reported != nil {
		u.Half, u.Patch = Reported, p.Reported
	}
	switch {
	case p.Version != nil && *p.Version < 0:
		return u, invalid("version is %d", *p.Version)
	case p.Version != nil:
		u.Version = *p.Version
		return u, nil
	}
	return u, u.match(r.Header.Get("If-Match"))
}

// match reads If-Match (RFC 9110, section 13.1.1): one ETag of ours, or *.
func (u *Update) match(header string) error {
	switch header = strings.TrimSpace(header); header {
	case "":
		u.Version = AnyVersion
		return nil
	case "*":
		u.Version = PresentVersion
		return nil
	}
	version, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(header, `"`), `"`), 10, 64)
	if err != nil || version < 0 {
		return fmt.Errorf("%w: If-Match is %.40q, which is no ETag of a shadow", ErrVersion, header)
	}
	u.Version = version
	return nil
}

// May says whether somebody may change a half of a device's shadow: apps what is desired, hubs and clouds what they report;
// a hub may take back what is desired of its own devices, when they were changed by hand.
func May(id *identity.Identity, home, device string, h Half) *reason.Refusal {
	no := id.MayTelemetry(home, device)
	if h == Reported || no == nil && id.MaySee(home, device) == nil {
		return no
	}
	return id.MayCommand(home, device)
}

func (s *Shadows) patchRequest(w http.ResponseWriter, r *http.Request, id *identity.Identity) error {
	limit := int64(2*s.DocumentMax + requestMore) // there may be spaces in it
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return api.Refused(http.StatusRequestEntityTooLarge, "too-large", fmt.Sprintf("the body cannot be read, or has more than %d bytes", limit))
	}
	p, err := readPatch(data)
	if err != nil {
		return err
	}
	u, err := p.update(r)
	if err != nil {
		return err
	}
	return s.change(w, r, id, u, p.Home)
}

func (s *Shadows) deleteRequest(w http.ResponseWriter, r *http.Request, id *identity.Identity) error {
	u := Update{Delete: true}
	if err := u.match(r.Header.Get("If-Match")); err != nil {
		return err
	}
	return s.change(w, r, id, u, "")
}

// change makes a change that somebody asks for, and answers with what stands then.
func (s *Shadows) change(w http.ResponseWriter, r *http.Request, id *identity.Identity, u Update, body string) (err error) {
	if u.Home, u.Device, err = place(r, id, body); err != nil {
		return err
	}
	no := May(id, u.Home, u.Device, u.Half)
	if u.Delete {
		no = id.MayCommand(u.Home, u.Device)
	}
	if err := api.May(no); err != nil {
		return err
	}
	if err := api.Spend(id); err != nil {
		return err
	}
	u.By = id.User
	ctx, cancel := context.WithTimeout(r.Context(), s.WriteTimeout)
	defer cancel()
	if err := s.Do(ctx, u); err != nil {
		return err
	}
	if u.Delete {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return s.answer(w, u.Home, u.Device)
}
