package identity

import (
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"strings"
	"sync/atomic"

	"go.yaml.in/yaml/v3"
)

// Revocation is one entry of the revocations file: what is good by its signature and its times, and no longer taken.
type Revocation struct {
	Serial string `yaml:"serial"` // of a client certificate: hexadecimal, with colons or without
	Name   string `yaml:"name"`   // of a client certificate (by client_name), or a token's sub
	Token  string `yaml:"token"`  // a token's jti
}

// revocationsMax bounds the file.
const revocationsMax = 1_000_000

// revocations are all that are in force. A list of them is never changed.
type revocations struct{ serials, names, tokens map[string]bool }

// revocable is what an identity can be revoked by, beside its entry and its signer.
type revocable struct {
	list                *atomic.Pointer[revocations]
	serial, name, token string
	crl                 *atomic.Pointer[map[certMark]bool] // nil where it is no certificate
	marks               []certMark                         // of a certificate and those between it and its authority
}

var errRevoked = errors.New("these credentials have been revoked")

func (r *revocable) err() error {
	if l := r.list.Load(); l != nil && (l.serials[r.serial] || l.names[r.name] || l.tokens[r.token]) {
		return errRevoked
	}
	if r.crl == nil {
		return nil
	}
	if l := r.crl.Load(); l != nil {
		for _, m := range r.marks {
			if (*l)[m] {
				return errRevoked
			}
		}
	}
	return nil
}

// readRevocations reads a YAML list of [Revocation].
func readRevocations(path string) (*revocations, error) {
	f, err := os.Open(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []Revocation
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	if err := d.Decode(&all); err != nil && err != io.EOF {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(all) > revocationsMax {
		return nil, fmt.Errorf("%s: %d entries; at most %d", path, len(all), revocationsMax)
	}
	out := &revocations{serials: map[string]bool{}, names: map[string]bool{}, tokens: map[string]bool{}}
	for i, r := range all {
		switch {
		case r.Serial != "" && r.Name+r.Token == "":
			n, ok := new(big.Int).SetString(strings.ReplaceAll(r.Serial, ":", ""), 16)
			if !ok {
				return nil, fmt.Errorf("%s: entry %d: serial %q is not hexadecimal", path, i+1, r.Serial)
			}
			out.serials[n.Text(16)] = true
		case r.Name != "" && r.Serial+r.Token == "":
			out.names[r.Name] = true
		case r.Token != "" && r.Serial+r.Name == "":
			out.tokens[r.Token] = true
		default:
			return nil, fmt.Errorf("%s: entry %d: want one of serial, name and token", path, i+1)
		}
	}
	return out, nil
}
