package ingest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"sync/atomic"

	"hearthline/flow/secret"
	"hearthline/ingest/identity"
)

// ticketKeysMax is how many keys of session tickets may be in force: one in use, and those that clients' older tickets still need.
const ticketKeysMax = 16

// secrets are the TLS files as they were last read.
type secrets struct {
	certificate tls.Certificate
	tickets     [][32]byte // nil: each config makes its own
	clientCAs   *x509.CertPool
	marks       [2]identity.FileMark // of certificate and tickets
}

// tlsDoor gives the TLS configuration of one door. It is another one after files have changed: connections keep what they began with.
type tlsDoor struct {
	count     *listenerCounters
	protocols []string
	now       atomic.Pointer[tls.Config]
}

func newTLSDoor(count *listenerCounters, protocols ...string) *tlsDoor {
	return &tlsDoor{count: count, protocols: protocols}
}

// set makes a configuration of the secrets.
func (d *tlsDoor) set(s *secrets, curves []tls.CurveID) {
	config := &tls.Config{
		MinVersion:       tls.VersionTLS13,
		NextProtos:       d.protocols,
		Certificates:     []tls.Certificate{s.certificate},
		CurvePreferences: curves,
	}
	if s.clientCAs != nil {
		config.ClientCAs, config.ClientAuth = s.clientCAs, tls.VerifyClientCertIfGiven
	}
	if len(s.tickets) > 0 {
		config.SetSessionTicketKeys(s.tickets)
	}
	d.now.Store(config)
}

// loadTLS reads the files of TLS that have changed, and gives both doors what follows.
func (g *Gateway) loadTLS() error {
	next := g.secrets
	mark, err := identity.MarkOf(g.Certificate)
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if mark != next.marks[0] {
		if err := secret.Private(g.Key); err != nil {
			return fmt.Errorf("key: %w", err)
		}
		if next.certificate, err = tls.LoadX509KeyPair(g.Certificate, g.Key); err != nil {
			return fmt.Errorf("certificate %s, key %s: %w", g.Certificate, g.Key, err)
		}
		next.marks[0] = mark
	}
	if g.SessionTickets != "" {
		if mark, err = identity.MarkOf(g.SessionTickets); err != nil {
			return fmt.Errorf("session_tickets: %w", err)
		}
		if mark != next.marks[1] {
			if next.tickets, err = readTicketKeys(g.SessionTickets); err != nil {
				return fmt.Errorf("session_tickets: %w", err)
			}
			next.marks[1] = mark
		}
	}
	next.clientCAs = g.door.ClientCAs()
	if next.marks == g.secrets.marks && next.clientCAs == g.secrets.clientCAs {
		return nil
	}
	curves, err := g.curves()
	if err != nil {
		return err
	}
	g.secrets = next
	for _, d := range []*tlsDoor{g.mqttTLS, g.webTLS} {
		d.set(&next, curves)
	}
	return nil
}

// readTicketKeys reads the keys of session tickets, one a line.
func readTicketKeys(path string) (keys [][32]byte, err error) {
	data, err := secret.File(path)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		b, err := hex.DecodeString(line)
		if err != nil || len(b) != 32 {
			return nil, fmt.Errorf("%s: line %d is not 64 hexadecimal digits (openssl rand -hex 32)", path, n)
		}
		keys = append(keys, [32]byte(b))
	}
	if len(keys) == 0 || len(keys) > ticketKeysMax {
		return nil, fmt.Errorf("%s: %d keys; want 1 to %d", path, len(keys), ticketKeysMax)
	}
	return keys, nil
}

// curves are those of the settings, nil for Go's choice.
func (a *Admission) curves() (out []tls.CurveID, err error) {
	known := map[string]tls.CurveID{"X25519MLKEM768": tls.X25519MLKEM768, "X25519": tls.X25519, "P256": tls.CurveP256, "P384": tls.CurveP384}
	for _, name := range a.Curves {
		id, ok := known[name]
		if !ok {
			return nil, fmt.Errorf("curves: %q; want some of X25519MLKEM768, X25519, P256, P384", name)
		}
		out = append(out, id)
	}
	return out, nil
}
