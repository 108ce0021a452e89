package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"

	"hearthline/ingest/names"
)

// Limits of tokens.
const (
	tokenBytesMax   = 8 << 10
	subjectBytesMax = 255
)

// issued is an issuer with its keys.
type issued struct {
	Issuer
	keySet *keySet
}

// isToken says whether a secret has the form of a signed token: header.payload.signature, where the header is a JSON object.
func isToken(s string) bool { return strings.HasPrefix(s, "eyJ") && strings.Count(s, ".") == 2 }

// tokenClaims are what is read of a token.
type tokenClaims struct {
	jwt.Claims
	all map[string]json.RawMessage
}

// admitToken says who comes with a token.
func (d *Door) admitToken(ctx context.Context, token, user string) (*Identity, error) {
	if len(token) > tokenBytesMax {
		return nil, fmt.Errorf("a token of more than %d bytes", tokenBytesMax)
	}
	parsed, err := jwt.ParseSigned(token, asymmetric)
	if err != nil || len(parsed.Headers) != 1 {
		return nil, errors.New("the token cannot be read, or is signed in a way that is not taken here")
	}
	var claims tokenClaims
	if err := parsed.UnsafeClaimsWithoutVerification(&claims.Claims); err != nil {
		return nil, errors.New("the token's claims cannot be read")
	}
	i := slices.IndexFunc(d.issuers, func(i *issued) bool { return i.Issuer.Issuer == claims.Issuer })
	if i < 0 {
		return nil, errors.New("the token's issuer is not one that is trusted here")
	}
	iss, head := d.issuers[i], parsed.Headers[0]
	if !slices.Contains(iss.Algorithms, head.Algorithm) {
		return nil, errors.New("the token is signed in a way that is not taken here")
	}
	key, err := iss.keySet.find(ctx, head.KeyID, head.Algorithm)
	if err != nil {
		return nil, err
	}
	claims = tokenClaims{}
	if err := parsed.Claims(key.Key, &claims.Claims, &claims.all); err != nil {
		return nil, errors.New("the token's signature is wrong")
	}
	if err := iss.check(&claims, d.now()); err != nil {
		return nil, err
	}
	if iss.UserIsSub && user != claims.Subject {
		return nil, errors.New("the user name is not the token's sub")
	}
	return d.tokenIdentity(iss, &claims, key.signer)
}

// check holds verified claims to their times, to the audience, and to having a subject and an end.
func (i *issued) check(c *tokenClaims, now time.Time) error {
	err := c.ValidateWithLeeway(jwt.Expected{Issuer: i.Issuer.Issuer, AnyAudience: jwt.Audience{i.Audience}, Time: now}, i.Leeway)
	switch {
	case errors.Is(err, jwt.ErrExpired):
		return errExpired
	case errors.Is(err, jwt.ErrInvalidAudience):
		return errors.New("the token is for another audience")
	case err != nil:
		return errors.New("the token is not valid yet")
	case c.Expiry == nil:
		return errors.New("a token without an end (exp)")
	case c.Subject == "" || len(c.Subject) > subjectBytesMax || names.BadRunes(c.Subject, false) != "":
		return errors.New("a token without a usable subject (sub)")
	}
	return nil
}

// tokenIdentity gives what a good token grants: what its claims say, or else the entry of the credentials file that names its subject.
func (d *Door) tokenIdentity(iss *issued, c *tokenClaims, by *signer) (*Identity, error) {
	var id *Identity
	grants, err := iss.grants(c.all)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the token's claims: %w", err)
	case len(grants) > 0:
		id = d.guest("token:"+iss.Issuer.Issuer+"#"+c.Subject, c.Subject, grants)
	default:
		d.mu.RLock()
		base := d.byToken[c.Subject]
		d.mu.RUnlock()
		if base == nil {
			return nil, fmt.Errorf("the token names no home (claim %s), and its subject is not in the credentials file", iss.Homes)
		}
		id = base.provedAnew()
	}
	id.Expires, id.by = c.Expiry.Time().Add(iss.Leeway), by
	id.revocable = &revocable{list: &d.revoked, token: c.ID, name: c.Subject}
	return id, id.Gone(d.now())
}

// grants reads the homes of a token. None is no error: the credentials file may know its subject.
func (i *Issuer) grants(all map[string]json.RawMessage) (out []Grant, err error) {
	raw := all[i.Homes]
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	role := i.AsRole
	if said := all[i.Role]; len(said) > 0 {
		if err := json.Unmarshal(said, &role); err != nil {
			return nil, fmt.Errorf("%s is not a text", i.Role)
		}
	}
	if out, err = homesOf(raw); err != nil {
		return nil, fmt.Errorf("%s: %w", i.Homes, err)
	}
	if len(out) > homesMax {
		return nil, fmt.Errorf("%s: %d homes; at most %d", i.Homes, len(out), homesMax)
	}
	sortGrants(out)
	for n := range out {
		if out[n].Role == "" {
			out[n].Role = role
		}
		if err := out[n].check(); err != nil {
			return nil, err
		}
		if n > 0 && out[n].Home == out[n-1].Home {
			return nil, fmt.Errorf("home %q is given twice", out[n].Home)
		}
	}
	return out, nil
}

// homesOf reads "h1", ["h1", {"home": "h2", "role": "viewer"}] and {"h1": "app"}.
func homesOf(raw json.RawMessage) (out []Grant, err error) {
	switch raw[0] {
	case '"':
		out = make([]Grant, 1)
		return out, json.Unmarshal(raw, &out[0].Home)
	case '{':
		var byHome map[string]string
		if err := json.Unmarshal(raw, &byHome); err != nil {
			return nil, errors.New("want the names of homes with a role each")
		}
		for home, role := range byHome {
			out = append(out, Grant{Home: home, Role: role})
		}
		return out, nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, errors.New("want a name, a list, or names with a role each")
	}
	for _, item := range list {
		var g Grant
		if item[0] == '"' {
			err = json.Unmarshal(item, &g.Home)
		} else {
			d := json.NewDecoder(bytes.NewReader(item))
			d.DisallowUnknownFields()
			err = d.Decode(&g)
		}
		if err != nil {
			return nil, errors.New("want names, or {home, role, devices} each")
		}
		out = append(out, g)
	}
	return out, nil
}
