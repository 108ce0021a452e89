package identity

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"hearthline/ingest/reason"
)

// Roles say what an identity does in a home. What each may publish and subscribe to, unless its credentials say otherwise, is
// in defaultTopics.
const (
	RoleHub     = "hub"     // sends telemetry, hears commands and acknowledges them
	RoleApp     = "app"     // sees the live state and sends commands, but no telemetry
	RoleViewer  = "viewer"  // sees the live state, and no more
	RoleService = "service" // a cloud: telemetry of one or several homes, and no more
)

var roles = []string{RoleHub, RoleApp, RoleViewer, RoleService}

// topics are templates of topics: those under which one may publish, and those one may subscribe to.
type topics struct{ publish, subscribe []string }

// wholeHome is everything in a home; ownDevices what belongs to the devices that the credentials list.
var (
	wholeHome  = []string{"homes/{home}/#"}
	ownDevices = []string{"homes/{home}/devices/{device}/#"}
)

// defaultTopics are a role's templates. A hub that is bound to some devices has those of boundHub.
var (
	defaultTopics = map[string]topics{
		RoleHub:     {wholeHome, wholeHome},
		RoleApp:     {wholeHome, wholeHome},
		RoleViewer:  {nil, wholeHome},
		RoleService: {[]string{"homes/{home}/devices/{device}/telemetry/#"}, nil},
	}
	boundHub = topics{ownDevices, ownDevices}
)

// Grant is what an identity may do in one home.
type Grant struct {
	Home    string   `yaml:"home" json:"home"`
	Role    string   `yaml:"role,omitempty" json:"role,omitempty"`       // hub (default), app, viewer or service
	Devices []string `yaml:"devices,omitempty" json:"devices,omitempty"` // of the home; empty is all of them
	// Templates of the topics it may publish to and subscribe to, instead of its role's: topic filters that begin with
	// homes/{home}/, in which {user}, {client} and {device} stand for whole levels.
	Publish   []string `yaml:"publish,omitempty" json:"publish,omitempty"`
	Subscribe []string `yaml:"subscribe,omitempty" json:"subscribe,omitempty"`
}

// topics are the templates in force.
func (g *Grant) topics() topics {
	t := defaultTopics[g.Role]
	if g.Role == RoleHub && len(g.Devices) > 0 {
		t = boundHub
	}
	if len(g.Publish)+len(g.Subscribe) > 0 {
		t = topics{g.Publish, g.Subscribe}
	}
	return t
}

func (g *Grant) holds(device string) bool {
	return len(g.Devices) == 0 || slices.Contains(g.Devices, device)
}

func (g Grant) equal(o Grant) bool {
	return g.Home == o.Home && g.Role == o.Role && slices.Equal(g.Devices, o.Devices) &&
		slices.Equal(g.Publish, o.Publish) && slices.Equal(g.Subscribe, o.Subscribe)
}

// Identity is who a connection or request speaks for, and what it may do. It does not change: when its credentials do,
// another one takes its place, and this one is [Identity.Gone].
type Identity struct {
	User    string    // What the client is called, and what {user} stands for in templates
	Subject string    // unique among all ways to prove who one is: sessions and client ids belong to it
	Expires time.Time // of what proved it; zero: never
	Grants  []Grant   // sorted by home, one each; one at least

	Messages    *rate.Limiter // shared by all connections of the subject
	Bytes       *rate.Limiter
	Sessions    *atomic.Int64 // MQTT, open now; likewise
	SessionsMax int           // 0: what the gateway allows

	entry     *entry                   // of the credentials file; nil of others
	gone      atomic.Pointer[string]   // of an entry that is no more, or another
	removed   atomic.Bool              // of an entry that is no more
	next      atomic.Pointer[Identity] // of an entry that was changed: the one in its place
	base      *Identity                // the entry's, of one that was proved otherwise than by the entry's secrets
	by        *signer                  // who vouched for it; nil: the credentials file
	revocable *revocable               // nil where its entry is all that can be revoked
}

// entry is what of a [Credential] is looked at when somebody comes in, or when the file changes.
type entry struct {
	hash               passwordHash
	keys               []string
	certificate, token string
	limits             Limits
}

func (e *entry) equal(o *entry) bool {
	return e.hash == o.hash && slices.Equal(e.keys, o.keys) && e.certificate == o.certificate && e.token == o.token && e.limits == o.limits
}

// provedAnew gives an identity that ends with an entry's, and by what proved it too.
func (id *Identity) provedAnew() *Identity {
	return &Identity{User: id.User, Subject: id.Subject, Grants: id.Grants, Messages: id.Messages, Bytes: id.Bytes, Sessions: id.Sessions,
		SessionsMax: id.SessionsMax, base: id}
}

// sortGrants brings grants into the order that [Identity.grant] searches.
func sortGrants(g []Grant) {
	slices.SortFunc(g, func(a, b Grant) int { return cmp.Compare(a.Home, b.Home) })
}

// revoke ends the identity. Whoever holds it learns by [Identity.Gone].
func (id *Identity) revoke(why string) { id.gone.CompareAndSwap(nil, &why) }

// Gone says why the identity is no longer valid at a time, nil while it is. It is cheap: who holds a connection open asks every
// second.
func (id *Identity) Gone(now time.Time) error {
	if why := id.gone.Load(); why != nil {
		return errors.New(*why)
	}
	if id.base != nil {
		if err := id.base.Gone(now); err != nil {
			return err
		}
	}
	if id.by != nil && id.by.gone.Load() {
		return errSigner
	}
	if id.revocable != nil {
		if err := id.revocable.err(); err != nil {
			return err
		}
	}
	if !id.Expires.IsZero() && !now.Before(id.Expires) {
		return errExpired
	}
	return nil
}

// Revoked says whether whoever it is shall not come back: its entry was taken out, or its certificate, token or name revoked. One that is merely
// over (a token that has expired, a password that was changed, a key that was rotated) is another's to follow.
func (id *Identity) Revoked() bool {
	if id.base != nil && id.base.Revoked() || id.revocable != nil && id.revocable.err() != nil {
		return true
	}
	for next := id.next.Load(); next != nil; next = id.next.Load() {
		id = next
	}
	return id.removed.Load()
}

var errSigner = errors.New("the key or authority behind these credentials is no longer trusted")

var errExpired = errors.New("these credentials have expired")

func (id *Identity) grant(home string) *Grant {
	i, ok := slices.BinarySearchFunc(id.Grants, home, func(g Grant, home string) int { return cmp.Compare(g.Home, home) })
	if !ok {
		return nil
	}
	return &id.Grants[i]
}

// HomeOf gives the home that a topic, or a topic filter, speaks of. The home is a whole level, and no wildcard: "" where it
// is not under homes/{home}/.
func HomeOf(topic string) string {
	rest, ok := strings.CutPrefix(topic, "homes/")
	if !ok {
		return ""
	}
	home, _, ok := strings.Cut(rest, "/")
	if !ok || home == "+" {
		return ""
	}
	return home
}

// MayPublish says whether a client of this identity may publish to a topic, and to which home it belongs.
func (id *Identity) MayPublish(client, topic string) (home string, no *reason.Refusal) {
	return id.may(client, topic, func(t topics) []string { return t.publish })
}

// MaySubscribe says whether a client of this identity may have everything that a filter matches, and to which one home that
// belongs. Of a shared subscription it is asked without $share/{name}/.
func (id *Identity) MaySubscribe(client, filter string) (home string, no *reason.Refusal) {
	return id.may(client, filter, func(t topics) []string { return t.subscribe })
}

func (id *Identity) may(client, filter string, of func(topics) []string) (home string, no *reason.Refusal) {
	home = HomeOf(filter)
	g := id.grant(home)
	if g == nil {
		return "", reason.Refuse(reason.Topic, "%.80q is not under homes/{home}/ of a home of these credentials", filter)
	}
	rest := filter[len("homes/")+len(home)+1:]
	for _, template := range of(g.topics()) {
		if id.covers(g, template[len(templatePrefix):], client, rest) {
			return home, nil
		}
	}
	return "", reason.Refuse(reason.Topic, "%.80q is not a topic that these credentials (%s of home %s) may use so", filter, g.Role, home)
}

// MayTelemetry says whether it may send telemetry of a device of a home, "" of both for any.
func (id *Identity) MayTelemetry(home, device string) *reason.Refusal {
	return id.mayIn(home, device, "send telemetry", RoleHub, RoleService)
}

// MayCommand says whether it may send commands to a device of a home.
func (id *Identity) MayCommand(home, device string) *reason.Refusal {
	return id.mayIn(home, device, "send commands", RoleApp)
}

// MaySee says whether it may see the live state of a device of a home, and what became of commands.
func (id *Identity) MaySee(home, device string) *reason.Refusal {
	return id.mayIn(home, device, "see the live state", RoleApp, RoleViewer, RoleHub)
}

func (id *Identity) mayIn(home, device, what string, roles ...string) *reason.Refusal {
	if home == "" {
		if slices.ContainsFunc(id.Grants, func(g Grant) bool { return slices.Contains(roles, g.Role) }) {
			return nil
		}
		return reason.Refuse(reason.Topic, "these credentials may not %s", what)
	}
	g := id.grant(home)
	switch {
	case g == nil:
		return reason.Refuse(reason.Home, "home %q is not one of these credentials", home)
	case !slices.Contains(roles, g.Role):
		return reason.Refuse(reason.Topic, "these credentials may not %s of home %s", what, home)
	case device != "" && !g.holds(device):
		return reason.Refuse(reason.Device, "device %q is not one of these credentials", device)
	}
	return nil
}

// OnlyHome is the home of an identity that has one, else "".
func (id *Identity) OnlyHome() string {
	if len(id.Grants) == 1 {
		return id.Grants[0].Home
	}
	return ""
}
