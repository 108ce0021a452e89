// Package hook checks the signatures of webhooks: requests that a cloud pushes, and signs with a secret it shares with the
// gateway, because it can hold no password. HMAC-SHA256 is what all of them use; what they sign, and where they write it,
// differs.
package hook

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"hearthline/flow/secret"
	"hearthline/ingest/names"
	"hearthline/ingest/reason"
)

// Hook is one webhook: whom its rows belong to, and how it is signed.
//
// Headers are given by name, or as "Name:key" where the header holds comma-separated key=value pairs (Stripe's form,
// "t=…,v1=…").
type Hook struct {
	Home       string        `yaml:"home"`        // home of rows that name none
	Homes      []string      `yaml:"homes"`       // homes that rows may name besides; "*" is every home
	Device     string        `yaml:"device"`      // device of rows that name none
	Scheme     string        `yaml:"scheme"`      // standard (Standard Webhooks), github (X-Hub-Signature-256), or custom; gives the defaults of what follows
	SecretEnv  string        `yaml:"secret_env"`  // environment variable that holds the secret: one a line, while they are rotated
	SecretFile string        `yaml:"secret_file"` // file of them; read again when it changes
	Signature  string        `yaml:"signature"`   // header of the signature; it may hold several, separated by spaces
	Prefix     string        `yaml:"prefix"`      // what stands before a signature, such as sha256=
	Encoding   string        `yaml:"encoding"`    // of the signature: hex or base64
	Signed     string        `yaml:"signed"`      // what is signed, of {id}, {timestamp} and {body}, such as v0:{timestamp}:{body}
	ID         string        `yaml:"id"`          // header that names the delivery: the same one twice is written once
	Timestamp  string        `yaml:"timestamp"`   // header of the time of signing, in seconds since 1970
	Tolerance  time.Duration `yaml:"tolerance"`   // How far that time may be from the gateway's clock; 0 is 5 minutes
}

// Schemes.
const (
	Standard = "standard"
	GitHub   = "github"
	Custom   = "custom"
)

const (
	toleranceDefault = 5 * time.Minute
	toleranceMax     = time.Hour
	signaturesMax    = 8    // of one request; further ones are not looked at
	secretsMax       = 4    // of one hook: the new one, the old one, and room to be careless
	secretBytesMin   = 16   // shorter ones can be guessed
	idBytesMax       = 256  // of a delivery's name
	headerBytesMax   = 4096 // of a signature header
)

// Check completes the settings and says what is wrong with them. Whether the secret is there, [Hook.Open] says.
func (h *Hook) Check() error {
	switch h.Scheme {
	case Standard, "":
		h.Scheme = Standard
		h.defaults("webhook-signature", "v1,", "base64", "{id}.{timestamp}.{body}", "webhook-id", "webhook-timestamp")
	case GitHub:
		h.defaults("X-Hub-Signature-256", "sha256=", "hex", "{body}", "X-GitHub-Delivery", "")
	case Custom:
	default:
		return fmt.Errorf("scheme is %q; want %s, %s or %s", h.Scheme, Standard, GitHub, Custom)
	}
	h.Tolerance = cmp.Or(h.Tolerance, toleranceDefault)
	switch {
	case h.Home == "" && len(h.Homes) == 0:
		return errors.New("neither home nor homes is set: nobody would know whose the rows are")
	case (h.SecretEnv == "") == (h.SecretFile == ""):
		return errors.New("set one of secret_env and secret_file")
	case h.Signature == "":
		return errors.New("signature is not set: which header holds it?")
	case h.Encoding != "hex" && h.Encoding != "base64":
		return fmt.Errorf("encoding is %q; want hex or base64", h.Encoding)
	case strings.Count(h.Signed, "{body}") != 1:
		return fmt.Errorf("signed is %q; want {body} in it, once", h.Signed)
	case strings.Contains(h.Signed, "{timestamp}") != (h.Timestamp != ""):
		return errors.New("a timestamp is of use only where it is signed: set both timestamp and {timestamp} in signed, or neither")
	case strings.Contains(h.Signed, "{id}") && h.ID == "":
		return errors.New("signed holds {id}, and id names no header")
	case h.Tolerance < time.Second || h.Tolerance > toleranceMax:
		return fmt.Errorf("tolerance is %s; want 1s to %s", h.Tolerance, toleranceMax)
	}
	for _, home := range h.Homes {
		if why := names.Bad(home); why != "" && home != "*" {
			return fmt.Errorf("homes: %q %s", home, why)
		}
	}
	for name, v := range map[string]string{"home": h.Home, "device": h.Device} {
		if why := names.Bad(v); why != "" && v != "" {
			return fmt.Errorf("%s: %q %s", name, v, why)
		}
	}
	return nil
}

func (h *Hook) defaults(signature, prefix, encoding, signed, id, timestamp string) {
	h.Signature, h.Prefix, h.Encoding = cmp.Or(h.Signature, signature), cmp.Or(h.Prefix, prefix), cmp.Or(h.Encoding, encoding)
	h.Signed, h.ID, h.Timestamp = cmp.Or(h.Signed, signed), cmp.Or(h.ID, id), cmp.Or(h.Timestamp, timestamp)
}

// May says why rows of a home are refused.
func (h *Hook) May(home, _ string) *reason.Refusal {
	if home == h.Home || slices.Contains(h.Homes, home) || slices.Contains(h.Homes, "*") {
		return nil
	}
	return reason.Refuse(reason.Home, "home %q is not one of this webhook", home)
}

// Lock is a hook and its secrets. It is not changed, and may be used by many goroutines.
type Lock struct {
	*Hook
	secrets [][]byte
}

// Open reads the secrets of a hook that [Hook.Check] found right.
func (h *Hook) Open() (*Lock, error) {
	text, err := secret.Read(h.SecretEnv, h.SecretFile)
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	l := &Lock{Hook: h}
	for i, line := range strings.FieldsFunc(text, func(c rune) bool { return c == '\n' || c == '\r' }) {
		key := []byte(line)
		if rest, ok := strings.CutPrefix(line, "whsec_"); ok && h.Scheme == Standard {
			if key, err = base64.StdEncoding.DecodeString(rest); err != nil {
				return nil, fmt.Errorf("secret %d: whsec_ is not followed by base64", i+1)
			}
		}
		if len(key) < secretBytesMin {
			return nil, fmt.Errorf("secret %d has %d bytes; want %d or more: shorter ones can be guessed", i+1, len(key), secretBytesMin)
		}
		l.secrets = append(l.secrets, key)
	}
	if n := len(l.secrets); n < 1 || n > secretsMax {
		return nil, fmt.Errorf("%d secrets; want 1 to %d, each on a line of its own", n, secretsMax)
	}
	return l, nil
}

// Claim is what a request's headers say, before its body is read.
type Claim struct {
	lock       *Lock
	id, stamp  string
	signatures [][]byte
}

var (
	errUnsigned = errors.New("the signature is missing, or is not in the form that was agreed")
	errWrong    = errors.New("the signature is not that of this body and secret")
)

// Read takes the headers of a request. What they lack shows before the body costs anything.
func (l *Lock) Read(header http.Header, now time.Time) (*Claim, error) {
	c := &Claim{lock: l, id: one(header, l.ID), stamp: one(header, l.Timestamp)}
	if len(c.id) > idBytesMax || l.ID != "" && c.id == "" && strings.Contains(l.Signed, "{id}") {
		return nil, fmt.Errorf("header %s is missing or longer than %d bytes", l.ID, idBytesMax)
	}
	if l.Timestamp != "" {
		s, err := strconv.ParseInt(c.stamp, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("header %s is missing, or no number of seconds since 1970", l.Timestamp)
		}
		if off := now.Unix() - s; off > int64(l.Tolerance/time.Second) || -off > int64(l.Tolerance/time.Second) {
			return nil, fmt.Errorf("signed more than %s from now by the gateway's clock", l.Tolerance)
		}
	}
	for _, s := range values(header, l.Signature) {
		text, ok := strings.CutPrefix(s, l.Prefix)
		if !ok || len(c.signatures) == signaturesMax {
			continue
		}
		decode := hex.DecodeString
		if l.Encoding == "base64" {
			decode = base64.StdEncoding.DecodeString
		}
		if sum, err := decode(text); err == nil && len(sum) == sha256.Size {
			c.signatures = append(c.signatures, sum)
		}
	}
	if len(c.signatures) == 0 {
		return nil, errUnsigned
	}
	return c, nil
}

// Verify holds the body to the signatures. All secrets and signatures are compared, in constant time each, so that how
// long it takes says nothing of which of them was nearly right.
func (c *Claim) Verify(body []byte) error {
	before, after, _ := strings.Cut(c.lock.Signed, "{body}")
	fill := strings.NewReplacer("{id}", c.id, "{timestamp}", c.stamp)
	before, after = fill.Replace(before), fill.Replace(after)
	right := false
	for _, key := range c.lock.secrets {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(before))
		mac.Write(body)
		mac.Write([]byte(after))
		sum := mac.Sum(nil)
		for _, s := range c.signatures {
			right = hmac.Equal(sum, s) || right
		}
	}
	if !right {
		return errWrong
	}
	return nil
}

// Key names the delivery, so that one that comes again is known: its id, or else its signature where a timestamp makes
// that unlike any other. It is "" where nothing tells a repeated delivery from a new one that says the same.
func (c *Claim) Key() string {
	switch {
	case c.id != "":
		return "id " + c.id
	case c.stamp != "":
		return "signature " + hex.EncodeToString(c.signatures[0])
	}
	return ""
}

// one is the header's value where it has just one.
func one(h http.Header, spec string) string {
	if v := values(h, spec); len(v) == 1 {
		return v[0]
	}
	return ""
}

// values are what a header holds, or the values of a key in it.
func values(h http.Header, spec string) (out []string) {
	name, key, pairs := strings.Cut(spec, ":")
	for _, v := range h.Values(name) {
		if len(v) > headerBytesMax {
			continue
		}
		if !pairs {
			out = append(out, strings.Fields(v)...)
			continue
		}
		for pair := range strings.SplitSeq(v, ",") {
			if k, v, ok := strings.Cut(strings.TrimSpace(pair), "="); ok && k == key {
				out = append(out, v)
			}
		}
	}
	return out
}
