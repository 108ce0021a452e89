package ingest

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"hearthline/ingest/identity"
)

// Admission says who may come in.
type Admission struct {
	Certificate        string                      `yaml:"certificate"`         // PEM file: the server's certificate and its chain; read again when it changes
	Key                string                      `yaml:"key"`                 // PEM file: its key
	Credentials        string                      `yaml:"credentials"`         // file of users, API keys and the homes of each; read again when it changes
	Tokens             []identity.Issuer           `yaml:"tokens"`              // whose JSON Web Tokens are taken: by MQTT as the password, by HTTP as Bearer
	ClientCertificates identity.ClientCertificates `yaml:"client_certificates"` // of devices; a client that shows none needs a password or a token
	Revocations        string                      `yaml:"revocations"`         // YAML file of what is no longer taken, though signed: {serial}, {name} or {token}; read again when it changes; "" for none
	ClientID           string                      `yaml:"client_id"`           // What an MQTT client id must be: {user}, or with * at the end what it begins with, as in {user}-*; "" for anything
	SessionTickets     string                      `yaml:"session_tickets"`     // file with keys that replicas share, for clients to resume TLS on any: 64 hexadecimal digits a line, the first in use; read again when it changes; "" makes them at each start
	Curves             []string                    `yaml:"curves"`              // of key exchange, the best first: X25519MLKEM768, X25519, P256, P384; none named is Go's choice. X25519 alone takes about 2 KB less a connection (both sides together), and what was recorded then can be read by the quantum computers of later years

	AcceptsPerSecond   float64       `yaml:"accepts_per_second"`            // handshakes begun, of all together; those over it wait; 0: no limit
	AcceptWait         time.Duration `yaml:"accept_wait"`                   // at most; who would have to wait longer is turned away at once
	AddressConnections int           `yaml:"address_connections_max"`       // open at a time from one address (IPv6: one /64); 0: no limit, as many hubs may stand behind one
	AddressHandshakes  float64       `yaml:"address_handshakes_per_second"` // likewise; twice as many at once
	ProxyProtocol      []string      `yaml:"proxy_protocol"`                // networks of load balancers, such as 10.0.0.0/8: their connections begin with a header of PROXY protocol version 2, which says who the client is

	DrainWait       time.Duration `yaml:"drain_wait"`       // from the end of readiness until no more are taken: load balancers look by then
	EvictPerSecond  int           `yaml:"evict_per_second"` // MQTT clients sent away while the gateway drains: the others must take them
	ServerReference string        `yaml:"server_reference"` // host:port that MQTT 5 clients are told to go to then (0x9C); "" tells them only that this one goes (0x8B)

	proxies []netip.Prefix
}

// check says what is wrong with the settings by themselves.
func (a *Admission) check() error {
	issuers := make(map[string]bool)
	for _, i := range a.Tokens {
		if err := i.Validate(); err != nil {
			return fmt.Errorf("tokens: %w", err)
		}
		if issuers[i.Issuer] {
			return fmt.Errorf("tokens: issuer %s is given twice", i.Issuer)
		}
		issuers[i.Issuer] = true
	}
	if err := a.ClientCertificates.Validate(); err != nil {
		return err
	}
	if c := a.ClientID; c != "" && (!strings.Contains(c, "{user}") || strings.Contains(strings.TrimSuffix(c, "*"), "*")) {
		return fmt.Errorf("client_id is %q; want a text with {user}, and perhaps * at its end", c)
	}
	if a.AcceptsPerSecond < 0 || a.AcceptWait < 0 || a.AddressConnections < 0 || a.AddressHandshakes < 0 || a.DrainWait < 0 || a.EvictPerSecond < 1 {
		return errors.New("accepts_per_second, accept_wait, address_connections_max, address_handshakes_per_second and drain_wait must be 0 or more, evict_per_second 1 or more")
	}
	a.proxies = nil
	for _, n := range a.ProxyProtocol {
		p, err := netip.ParsePrefix(n)
		if err != nil {
			return fmt.Errorf("proxy_protocol: %q is not a network such as 10.0.0.0/8", n)
		}
		a.proxies = append(a.proxies, p.Masked())
	}
	_, err := a.curves()
	return err
}

// clientIDFits says whether a client may use an id. What is bound to its identity cannot be taken over by another, nor squatted.
func (a *Admission) clientIDFits(user, id string) bool {
	if a.ClientID == "" {
		return true
	}
	want := strings.ReplaceAll(a.ClientID, "{user}", user)
	if begin, open := strings.CutSuffix(a.ClientID, "*"); open {
		return strings.HasPrefix(id, strings.ReplaceAll(begin, "{user}", user))
	}
	return id == want
}

func (g *Gateway) newDoor() *identity.Door {
	return identity.NewDoor(identity.Settings{
		Credentials: g.Credentials, Clients: g.ClientCertificates, Issuers: g.Tokens, Revocations: g.Revocations,
		Limits: g.limiters, Failure: g.count.loginFailed, Now: g.Now,
	})
}

// limiters are the rates of one identity.
func (g *Gateway) limiters(l identity.Limits) (messages, bytes *rate.Limiter) {
	limiter := func(own, perSecond float64, burst int) *rate.Limiter {
		switch {
		case own > 0:
			return rate.NewLimiter(rate.Limit(own), max(1, burst))
		case perSecond <= 0:
			return rate.NewLimiter(rate.Inf, burst)
		}
		return rate.NewLimiter(rate.Limit(perSecond), max(1, burst))
	}
	return limiter(l.MessagesPerSecond, g.MessagesPerSecond, g.MessagesBurst), limiter(l.BytesPerSecond, g.BytesPerSecond, max(g.BytesBurst, g.DecompressedBytesMax))
}

// watchKeys keeps the keys of issuers fresh, until the gateway drains.
func (g *Gateway) watchKeys() {
	g.door.Watch(g.open, func(err error) {
		g.count.reloadErrors.Add(1)
		g.Logger.Error("gateway: keys cannot be read; those read before stay in force for a while", "err", err)
	})
}
