// Package identity says who a client is and what it may do: credentials with the homes they are bound to and a role in each,
// and what `up` makes for development.
package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"hearthline/ingest/names"
)

// Credential is one entry of the credentials file: who may come in, and for which homes it speaks. Most speak for one, which stands in
// the entry itself; others list several.
type Credential struct {
	User  string `yaml:"user" json:"user"`
	Grant `yaml:",inline"`
	Homes []Grant `yaml:"homes,omitempty" json:"homes,omitempty"` // instead of home, role, devices, publish and subscribe

	// How it may prove who it is: one or several of these.
	Hash        string   `yaml:"hash,omitempty" json:"hash,omitempty"`               // of the password: argon2id in PHC form (see [HashPassword]), or bcrypt
	Keys        []string `yaml:"keys,omitempty" json:"keys,omitempty"`               // of API keys, for HTTP: see [HashKey]
	Certificate string   `yaml:"certificate,omitempty" json:"certificate,omitempty"` // the name in its client certificate
	Token       string   `yaml:"token,omitempty" json:"token,omitempty"`             // the sub of its tokens, where they name no home

	Limits Limits `yaml:"limits,omitempty" json:"limits,omitzero"` // where they differ from the gateway's
}

// Limits of one identity; what is 0 is as in the gateway's settings.
type Limits struct {
	MessagesPerSecond float64 `yaml:"messages_per_second,omitempty" json:"messages_per_second,omitempty"`
	BytesPerSecond    float64 `yaml:"bytes_per_second,omitempty" json:"bytes_per_second,omitempty"`
	Connections       int     `yaml:"connections,omitempty" json:"connections,omitempty"` // of MQTT
}

// Limits of the file: a gateway holds its users in memory.
const (
	credentialsMax = 5_000_000
	homesMax       = 10_000 // of one entry
	keysOfEntryMax = 16
)

// ReadCredentials reads a credentials file: a YAML list of [Credential], or JSON lines of it. Unknown keys, users
// given twice and hashes of another kind are errors.
func ReadCredentials(r io.Reader) ([]Credential, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	all, err := decodeCredentials(data)
	if err != nil {
		return nil, err
	}
	if len(all) > credentialsMax {
		return nil, fmt.Errorf("credentials: %d entries; at most %d", len(all), credentialsMax)
	}
	given := make(map[[2]string]bool, len(all))
	for i := range all {
		c := &all[i]
		if err := c.check(); err != nil {
			return nil, fmt.Errorf("credentials: entry %d (user %q): %w", i+1, c.User, err)
		}
		once := [][2]string{{"user", c.User}, {"certificate", c.Certificate}, {"token", c.Token}}
		for _, k := range c.Keys {
			once = append(once, [2]string{"key", k})
		}
		for _, o := range once {
			if o[1] != "" && given[o] {
				return nil, fmt.Errorf("credentials: entry %d (user %q): %s %q is given twice", i+1, c.User, o[0], o[1])
			}
			given[o] = true
		}
	}
	return all, nil
}

func decodeCredentials(data []byte) (all []Credential, err error) {
	if t := bytes.TrimSpace(data); len(t) == 0 || t[0] != '{' {
		d := yaml.NewDecoder(bytes.NewReader(data))
		d.KnownFields(true)
		if err := d.Decode(&all); err != nil && err != io.EOF {
			return nil, fmt.Errorf("credentials: %w", err)
		}
		return all, nil
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	for n := 1; ; n++ {
		var c Credential
		if err := d.Decode(&c); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("credentials: entry %d: %w", n, err)
		}
		all = append(all, c)
	}
}

func (c *Credential) check() error {
	if c.User == "" || len(c.User) > names.BytesMax || strings.Contains(c.User, ":") {
		return fmt.Errorf("user must have 1 to %d bytes and no colon", names.BytesMax)
	}
	if _, err := c.grants(); err != nil {
		return err
	}
	if len(c.Keys) > keysOfEntryMax {
		return fmt.Errorf("%d keys; at most %d", len(c.Keys), keysOfEntryMax)
	}
	for _, k := range c.Keys {
		if _, err := parseKeyHash(k); err != nil {
			return err
		}
	}
	if l := c.Limits; l.MessagesPerSecond < 0 || l.BytesPerSecond < 0 || l.Connections < 0 {
		return errors.New("limits must be 0 or more")
	}
	if c.Hash == "" && (len(c.Keys) > 0 || c.Certificate != "" || c.Token != "") {
		return nil
	}
	return passwordHash(c.Hash).check()
}

// grants gives what the entry grants, in the form that an [Identity] holds.
func (c *Credential) grants() ([]Grant, error) {
	all := slices.Clone(c.Homes)
	if len(all) == 0 {
		all = []Grant{c.Grant}
	} else if !c.Grant.equal(Grant{}) {
		return nil, errors.New("home, role, devices, publish and subscribe stand either in the entry or under homes, not in both")
	}
	if len(all) > homesMax {
		return nil, fmt.Errorf("%d homes; at most %d", len(all), homesMax)
	}
	sortGrants(all)
	for i := range all {
		if all[i].Role == "" {
			all[i].Role = RoleHub
		}
		if err := all[i].check(); err != nil {
			return nil, err
		}
		if i > 0 && all[i].Home == all[i-1].Home {
			return nil, fmt.Errorf("home %q is given twice", all[i].Home)
		}
	}
	return all, nil
}

func (g *Grant) check() error {
	if why := names.Bad(g.Home); why != "" {
		return fmt.Errorf("home %q %s", g.Home, why)
	}
	for _, d := range g.Devices {
		if why := names.Bad(d); why != "" {
			return fmt.Errorf("device %q %s", d, why)
		}
	}
	if !slices.Contains(roles, g.Role) {
		return fmt.Errorf("role %q; want one of %s", g.Role, strings.Join(roles, ", "))
	}
	return errors.Join(checkTemplates(g.Publish), checkTemplates(g.Subscribe))
}
