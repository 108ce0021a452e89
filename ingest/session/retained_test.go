package session

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hearthline/ingest/mqtt"
	"hearthline/ingest/names"
)

func matched(r Retained, home, filter string) []string {
	var out []string
	r.Match(home, filter, func(m *mqtt.Message) { out = append(out, m.Topic+"="+string(m.Payload)) })
	slices.Sort(out)
	return out
}

func message(topic, payload string) *mqtt.Message {
	return &mqtt.Message{Topic: topic, Payload: []byte(payload), Qos: 1}
}

func TestRetainedKeepsTheLastOfATopic(t *testing.T) {
	r := &Memory{HomeMax: 10, HomeBytesMax: 1 << 20, BytesMax: 1 << 20}
	borrowed := message("homes/a/x", "1")
	for _, m := range []*mqtt.Message{borrowed, message("homes/a/y/z", "1"), message("homes/a/y/z", "2")} {
		if err := r.Set("a", m); err != nil {
			t.Fatal(err)
		}
	}
	borrowed.Payload[0] = '9'
	name := []byte("z")
	if err := r.Set(names.View(name), message("homes/z/x", "1")); err != nil {
		t.Fatal(err)
	}
	name[0] = 'q'
	if got := matched(r, "z", "homes/z/x"); len(got) != 1 {
		t.Error("the home's name was not copied")
	}
	if err := r.Set("z", message("homes/z/x", "")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		home, filter string
		want         []string
	}{
		{"a", "homes/a/#", []string{"homes/a/x=1", "homes/a/y/z=2"}}, {"a", "homes/a/+", []string{"homes/a/x=1"}},
		{"a", "homes/a/y/z", []string{"homes/a/y/z=2"}}, {"a", "homes/a/y", nil}, {"b", "homes/a/#", nil},
	} {
		if got := matched(r, c.home, c.filter); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v; want %v", c.filter, got, c.want)
		}
	}
	for _, topic := range []string{"homes/a/x", "homes/a/y/z", "homes/a/never"} {
		if err := r.Set("a", message(topic, "")); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.homes) != 0 || r.bytes != 0 {
		t.Errorf("%d homes, %d bytes are left", len(r.homes), r.bytes)
	}
}

func TestRetainedIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &Memory{HomeMax: 2, HomeBytesMax: 1000, BytesMax: 1500}
		passing := message("a/passing", "x")
		passing.Expires = time.Now().Add(time.Minute)
		for _, c := range []struct {
			home string
			m    *mqtt.Message
			full bool
		}{
			{"a", passing, false}, {"a", message("a/1", strings.Repeat("x", 500)), false}, {"a", message("a/2", "x"), true},
			{"a", message("a/1", strings.Repeat("x", 990)), true}, {"b", message("b/1", strings.Repeat("x", 700)), false},
			{"c", message("c/1", strings.Repeat("x", 300)), true}, {"a", message("a/1", "y"), false}, {"c", message("c/1", strings.Repeat("x", 300)), false},
		} {
			if err := r.Set(c.home, c.m); errors.Is(err, ErrRetainedFull) != c.full {
				t.Errorf("%s: %v", c.m.Topic, err)
			}
		}
		if got := matched(r, "a", "#"); !slices.Equal(got, []string{"a/1=y", "a/passing=x"}) {
			t.Error(got)
		}
		time.Sleep(time.Minute)
		if got := matched(r, "a", "#"); !slices.Equal(got, []string{"a/1=y"}) {
			t.Errorf("an expired message is given out: %v", got)
		}
		if err := r.Set("a", message("a/2", "x")); err != nil {
			t.Errorf("an expired message takes room: %v", err)
		}
	})
}
