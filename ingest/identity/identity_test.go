package identity

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

func of(user string, grants ...Grant) *Identity {
	for i := range grants {
		if grants[i].Role == "" {
			grants[i].Role = RoleHub
		}
	}
	sortGrants(grants)
	return &Identity{User: user, Subject: user, Grants: grants}
}

func TestTopics(t *testing.T) {
	hub, bound := of("anna", Grant{Home: "h1"}), of("lamp", Grant{Home: "h1", Devices: []string{"lamp", "lamp2"}})
	family := of("carl", Grant{Home: "h1", Role: RoleApp}, Grant{Home: "h2", Role: RoleViewer}, Grant{Home: "h3", Role: RoleService})
	own := of("u", Grant{Home: "h1", Devices: []string{"d"},
		Publish:   []string{"homes/{home}/users/{user}/#", "homes/{home}/clients/{client}", "homes/{home}/devices/{device}/x/+"},
		Subscribe: []string{"homes/{home}/all/+/state", "homes/{home}/deep/#"}})
	plus := of("+", Grant{Home: "h1", Publish: []string{"homes/{home}/x"}, Subscribe: []string{"homes/{home}/users/{user}", "homes/{home}/devices/{device}/a"}})
	const pub, sub = true, false
	for _, c := range []struct {
		id      *Identity
		publish bool
		topic   string
		home    string // "" is refused
	}{
		{hub, pub, "homes/h1/anything", "h1"},
		{hub, pub, "homes/h1/", "h1"},
		{hub, pub, "homes/h1", ""},
		{hub, pub, "homes/h10/x", ""},
		{hub, pub, "homes/h/x", ""},
		{hub, pub, "homes//x", ""},
		{hub, pub, "homes/h2/x", ""},
		{hub, pub, "home/h1/x", ""},
		{hub, pub, "$SYS/x", ""},
		{hub, pub, "/homes/h1/x", ""},
		{hub, sub, "homes/h1/#", "h1"},
		{hub, sub, "homes/h1/+/x", "h1"},
		{hub, sub, "homes/+/x", ""},
		{hub, sub, "homes/#", ""},
		{hub, sub, "#", ""},
		{hub, sub, "+/h1/x", ""},
		{hub, sub, "homes/+/#", ""},
		{bound, pub, "homes/h1/devices/lamp/telemetry", "h1"},
		{bound, pub, "homes/h1/devices/lamp2/state/x", "h1"},
		{bound, pub, "homes/h1/devices/oven/commands", ""},
		{bound, sub, "homes/h1/devices/lamp/#", "h1"},
		{bound, sub, "homes/h1/devices/+/commands", ""},
		{bound, sub, "homes/h1/#", ""},
		{bound, sub, "homes/h1/devices/#", ""},
		{family, pub, "homes/h1/devices/lamp/commands", "h1"},
		{family, pub, "homes/h2/devices/lamp/commands", ""},
		{family, sub, "homes/h2/devices/#", "h2"},
		{family, pub, "homes/h3/devices/lamp/telemetry", "h3"},
		{family, pub, "homes/h3/devices/lamp/telemetry/senml", "h3"},
		{family, pub, "homes/h3/devices/lamp/commands", ""},
		{family, sub, "homes/h3/#", ""},
		{family, sub, "homes/+/devices/lamp/state", ""},
		{family, sub, "homes/h4/x", ""},
		{own, pub, "homes/h1/users/u/x/y", "h1"},
		{own, pub, "homes/h1/users/v/x", ""},
		{own, pub, "homes/h1/clients/c1", "h1"},
		{own, pub, "homes/h1/clients/c2", ""},
		{own, pub, "homes/h1/devices/d/x/1", "h1"},
		{own, pub, "homes/h1/devices/d/x", ""},
		{own, pub, "homes/h1/devices/d/x/1/2", ""},
		{own, pub, "homes/h1/devices/e/x/1", ""},
		{own, sub, "homes/h1/all/+/state", "h1"},
		{own, sub, "homes/h1/all/#", ""},
		{own, sub, "homes/h1/all/a/+", ""},
		{own, sub, "homes/h1/deep", "h1"},
		{own, sub, "homes/h1/deep/#", "h1"},
		{own, sub, "homes/h1/users/u", ""},
		{plus, sub, "homes/h1/users/+", ""},
		{plus, sub, "homes/h1/devices/+/a", "h1"},
		{plus, sub, "homes/h1/devices//a", ""},
	} {
		ask := c.id.MaySubscribe
		if c.publish {
			ask = c.id.MayPublish
		}
		home, no := ask("c1", c.topic)
		if home != c.home || (no == nil) != (c.home != "") {
			t.Errorf("%s, publish %t, %s: home %q, %v; want %q", c.id.User, c.publish, c.topic, home, no, c.home)
		}
	}
	if _, no := own.MayPublish("", "homes/h1/clients/"); no == nil {
		t.Error("a client without a name is taken for the empty level")
	}
}

func TestWhatRolesMay(t *testing.T) {
	id := of("x", Grant{Home: "hub"}, Grant{Home: "app", Role: RoleApp, Devices: []string{"lamp"}}, Grant{Home: "viewer", Role: RoleViewer}, Grant{Home: "service", Role: RoleService})
	for home, want := range map[string]string{"hub": "ts", "app": "cs", "viewer": "s", "service": "t", "other": ""} {
		got := ""
		if id.MayTelemetry(home, "lamp") == nil {
			got += "t"
		}
		if id.MayCommand(home, "lamp") == nil {
			got += "c"
		}
		if id.MaySee(home, "lamp") == nil {
			got += "s"
		}
		if got != want {
			t.Errorf("in %s it may %q; want %q", home, got, want)
		}
	}
	if id.MayCommand("app", "door") == nil || id.MaySee("app", "door") == nil || id.MayCommand("app", "") != nil {
		t.Error("the devices are not looked at")
	}
	if id.MayTelemetry("", "") != nil || of("v", Grant{Home: "h", Role: RoleViewer}).MayTelemetry("", "") == nil {
		t.Error("of any home")
	}
}

func TestGone(t *testing.T) {
	now := time.Now()
	id := of("x", Grant{Home: "h"})
	if id.Gone(now) != nil {
		t.Error("gone from the start")
	}
	id.Expires = now.Add(time.Second)
	if id.Gone(now) != nil || id.Gone(now.Add(time.Second)) == nil {
		t.Error("expiry")
	}
	id.revoke("because")
	if err := id.Gone(now); err == nil || err.Error() != "because" {
		t.Error(err)
	}
}

// What htpasswd -B writes, and what bcrypt does not see of a long password.
func TestBcrypt(t *testing.T) {
	b, err := bcrypt.GenerateFromPassword([]byte(strings.Repeat("x", 72)), 4)
	if err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"$2a$", "$2b$", "$2y$"} {
		h := passwordHash(prefix + string(b[4:]))
		if err := h.check(); err != nil {
			t.Error(prefix, err)
		}
		if !h.matches(strings.Repeat("x", 72)) || h.matches(strings.Repeat("x", 71)) || h.matches(strings.Repeat("x", 73)) {
			t.Error(prefix, "matches what it should not, or not what it should")
		}
	}
	if d := dummyLike(passwordHash(b)); !d.isBcrypt() || d.check() != nil {
		t.Error("an unknown user is told by the time the answer takes")
	}
}

func FuzzTopics(f *testing.F) {
	f.Add("homes/h1/x", "c")
	f.Add("homes/+/x", "+")
	f.Add("homes/h1/devices/+/telemetry/#", "#")
	id := of("u", Grant{Home: "h1"}, Grant{Home: "h2", Role: RoleApp, Subscribe: []string{"homes/{home}/clients/{client}/#"}})
	f.Fuzz(func(t *testing.T, topic, client string) {
		for _, ask := range []func(string, string) string{
			func(c, s string) string { home, _ := id.MayPublish(c, s); return home },
			func(c, s string) string { home, _ := id.MaySubscribe(c, s); return home },
		} {
			if home := ask(client, topic); home != "" && (home != "h1" && home != "h2" || !strings.HasPrefix(topic, "homes/"+home+"/")) {
				t.Errorf("%q gives home %q", topic, home)
			}
		}
	})
}
