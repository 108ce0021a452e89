package identity

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Issuer is who signs JSON Web Tokens (RFC 7519) that are trusted here, and how they are read.
type Issuer struct {
	Issuer     string        `yaml:"issuer"`      // iss of its tokens
	Audience   string        `yaml:"audience"`    // one of the aud of its tokens: those for others open nothing here
	Keys       string        `yaml:"keys"`        // its JSON Web Key Set (RFC 7517): a file, or an https:// address; "" asks {issuer}/.well-known/openid-configuration where
	CA         string        `yaml:"ca"`          // PEM file that the address's certificate is checked against; "" trusts the authorities of the system
	Algorithms []string      `yaml:"algorithms"`  // of signatures; none named is RS256, ES256 and EdDSA
	Leeway     time.Duration `yaml:"leeway"`      // clocks may differ by so much; 0 is 30 s
	Refresh    time.Duration `yaml:"refresh"`     // between readings of the address; 0 is 5 min. A file is read when it changes
	KeysLast   time.Duration `yaml:"keys_last"`   // so long keys are trusted whose address cannot be read; 0 is 24 h
	Homes      string        `yaml:"homes"`       // claim with the homes: a name, a list of names or of {home, role, devices}, or names with a role each; "" is homes
	Role       string        `yaml:"role"`        // claim with the role where the homes have none; "" is role
	AsRole     string        `yaml:"as_role"`     // the role where no claim says one; "" refuses such a token
	UserIsSub  bool          `yaml:"user_is_sub"` // an MQTT client's user name must be the token's sub; else it is not looked at
}

// asymmetric are the algorithms that can be allowed: those whose keys in a key set are public. HMAC and none are never among them.
var asymmetric = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}

var algorithmsDefault = []string{string(jose.RS256), string(jose.ES256), string(jose.EdDSA)}

// withDefaults fills in what is zero.
func (i Issuer) withDefaults() Issuer {
	if len(i.Algorithms) == 0 {
		i.Algorithms = algorithmsDefault
	}
	i.Leeway, i.Refresh = cmp.Or(i.Leeway, 30*time.Second), cmp.Or(i.Refresh, 5*time.Minute)
	i.KeysLast = cmp.Or(i.KeysLast, 24*time.Hour)
	i.Homes, i.Role = cmp.Or(i.Homes, "homes"), cmp.Or(i.Role, "role")
	return i
}

// Validate says what is wrong with the settings by themselves.
func (i Issuer) Validate() error {
	if i.Issuer == "" || i.Audience == "" {
		return errors.New("an issuer of tokens needs issuer and audience: a token that was made for others must open nothing here")
	}
	if i.Keys == "" || strings.Contains(i.Keys, "://") {
		at := cmp.Or(i.Keys, i.Issuer)
		if u, err := url.Parse(at); err != nil || u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("issuer %s: keys from %q; want https://…, or a file", i.Issuer, at)
		}
	}
	for _, a := range i.Algorithms {
		if !slices.Contains(asymmetric, jose.SignatureAlgorithm(a)) {
			return fmt.Errorf("issuer %s: algorithm %q; want some of %v", i.Issuer, a, asymmetric)
		}
	}
	if i.Leeway < 0 || i.Leeway > 10*time.Minute || i.Refresh < 0 || i.KeysLast < 0 {
		return fmt.Errorf("issuer %s: leeway must be 0 to 10m, refresh and keys_last 0 or more", i.Issuer)
	}
	if i.AsRole != "" && !slices.Contains(roles, i.AsRole) {
		return fmt.Errorf("issuer %s: as_role %q; want one of %s", i.Issuer, i.AsRole, strings.Join(roles, ", "))
	}
	return nil
}
