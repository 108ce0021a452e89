package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// issuerRig signs tokens, and publishes its keys in a file or at an address.
type issuerRig struct {
	t    *testing.T
	keys map[string]*jose.JSONWebKey // private, by kid
}

func newIssuerRig(t *testing.T) *issuerRig {
	r := &issuerRig{t: t, keys: map[string]*jose.JSONWebKey{}}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r.keys["rs"] = &jose.JSONWebKey{Key: rs, KeyID: "rs", Algorithm: "RS256", Use: "sig"}
	r.keys["ec"] = &jose.JSONWebKey{Key: ec, KeyID: "ec", Algorithm: "ES256"}
	r.keys["ed"] = &jose.JSONWebKey{Key: ed, KeyID: "ed", Algorithm: "EdDSA", Use: "sig"}
	return r
}

// set is the key set of these keys, public.
func (r *issuerRig) set(kids ...string) []byte {
	var set jose.JSONWebKeySet
	for _, kid := range kids {
		set.Keys = append(set.Keys, r.keys[kid].Public())
	}
	data, err := json.Marshal(set)
	if err != nil {
		r.t.Fatal(err)
	}
	return data
}

// token signs claims; those that are not given are good ones of anna.
func (r *issuerRig) token(kid string, change map[string]any) string {
	key := r.keys[kid]
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(key.Algorithm), Key: key}, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	claims := map[string]any{
		"iss": "https://id.example", "aud": "hearthline", "sub": "anna", "exp": time.Now().Add(time.Hour).Unix(), "homes": []string{"h1"}, "role": "app",
	}
	for k, v := range change {
		if claims[k] = v; v == nil {
			delete(claims, k)
		}
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		r.t.Fatal(err)
	}
	return token
}

func (r *issuerRig) door(i Issuer, credentials string) *Door {
	r.t.Helper()
	i.Issuer, i.Audience = "https://id.example", "hearthline"
	if err := i.Validate(); err != nil {
		r.t.Fatal(err)
	}
	dir := r.t.TempDir()
	d := NewDoor(Settings{
		Credentials: writeTest(r.t, dir, "c.yaml", credentials), Revocations: writeTest(r.t, dir, "revoked.yaml", ""),
		Issuers: []Issuer{i}, Limits: noLimits, Failure: func() {},
	})
	if err := d.Load(); err != nil {
		r.t.Fatal(err)
	}
	return d
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func TestTokens(t *testing.T) {
	r, stranger := newIssuerRig(t), newIssuerRig(t)
	d := r.door(Issuer{Keys: writeTest(t, t.TempDir(), "keys.json", string(r.set("rs", "ec", "ed"))), Algorithms: []string{"RS256", "ES256", "EdDSA"}},
		"- {user: file, home: h9, token: sub-of-file}\n")
	hour := func(n int) int64 { return time.Now().Add(time.Duration(n) * time.Hour).Unix() }
	good := r.token("ec", nil)
	parts := strings.Split(good, ".")
	public := func() string { // HS256 with the public key as its secret: the oldest trick
		key := r.keys["rs"].Public()
		secret, err := key.Thumbprint(crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: secret}, (&jose.SignerOptions{}).WithHeader("kid", "rs"))
		if err != nil {
			t.Fatal(err)
		}
		out, err := jwt.Signed(s).Claims(map[string]any{"iss": "https://id.example", "aud": "hearthline", "sub": "anna", "exp": hour(1), "homes": "h1", "role": "app"}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}()
	for _, c := range []struct {
		name, token string
		want        string // homes and roles, or part of the error
	}{
		{"RS256", r.token("rs", nil), "h1 app"},
		{"ES256", good, "h1 app"},
		{"EdDSA", r.token("ed", nil), "h1 app"},
		{"several audiences", r.token("ec", map[string]any{"aud": []string{"other", "hearthline"}}), "h1 app"},
		{"a home as text", r.token("ec", map[string]any{"homes": "h2"}), "h2 app"},
		{"homes with roles", r.token("ec", map[string]any{"homes": map[string]string{"h2": "viewer", "h1": "hub"}}), "h1 hub, h2 viewer"},
		{"homes in full", r.token("ec", map[string]any{"homes": []any{"h3", map[string]any{"home": "h1", "role": "viewer", "devices": []string{"d"}}}}), "h1 viewer [d], h3 app"},
		{"within the leeway", r.token("ec", map[string]any{"exp": time.Now().Unix() - 5}), "h1 app"},
		{"a subject of the file", r.token("ec", map[string]any{"homes": nil, "sub": "sub-of-file"}), "h9 hub"},
		{"a subject of no file", r.token("ec", map[string]any{"homes": nil}), "names no home"},
		{"expired", r.token("ec", map[string]any{"exp": hour(-1)}), "expired"},
		{"no end", r.token("ec", map[string]any{"exp": nil}), "without an end"},
		{"not yet", r.token("ec", map[string]any{"nbf": hour(1)}), "not valid yet"},
		{"another audience", r.token("ec", map[string]any{"aud": "bank"}), "another audience"},
		{"no audience", r.token("ec", map[string]any{"aud": nil}), "another audience"},
		{"another issuer", r.token("ec", map[string]any{"iss": "https://evil.example"}), "issuer"},
		{"no issuer", r.token("ec", map[string]any{"iss": nil}), "issuer"},
		{"no subject", r.token("ec", map[string]any{"sub": nil}), "subject"},
		{"a role that is none", r.token("ec", map[string]any{"role": "king"}), "role"},
		{"no role", r.token("ec", map[string]any{"role": nil}), "role"},
		{"a home that is none", r.token("ec", map[string]any{"homes": []string{"a/b"}}), "home"},
		{"every home", r.token("ec", map[string]any{"homes": []string{"+"}}), "home"},
		{"a home twice", r.token("ec", map[string]any{"homes": []string{"h1", "h1"}}), "twice"},
		{"homes of another type", r.token("ec", map[string]any{"homes": 7}), "want a name"},
		{"a stranger's key under our name", stranger.token("ec", nil), "signature"},
		{"changed", parts[0] + "." + b64(`{"iss":"https://id.example","aud":"hearthline","sub":"anna","exp":9999999999,"homes":["h7"],"role":"hub"}`) + "." + parts[2], "signature"},
		{"none", b64(`{"alg":"none"}`) + "." + parts[1] + ".", "cannot be read"},
		{"HS256 with the public key", public, "cannot be read"},
		{"too long", "eyJ" + strings.Repeat("x", tokenBytesMax) + "..", "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			id, err := d.Admit(t.Context(), Proof{Bearer: c.token, Address: c.name})
			got := fmt.Sprint(err)
			if err == nil {
				var all []string
				for _, g := range id.Grants {
					s := g.Home + " " + g.Role
					if len(g.Devices) > 0 {
						s += fmt.Sprint(" ", g.Devices)
					}
					all = append(all, s)
				}
				got = strings.Join(all, ", ")
			}
			if err == nil && got != c.want || err != nil && !strings.Contains(got, c.want) {
				t.Errorf("%s; want %s", got, c.want)
			}
			if err != nil && strings.Contains(got, c.token) {
				t.Error("the error holds the token")
			}
		})
	}
	t.Run("subjects do not meet", func(t *testing.T) {
		a, err := d.Admit(t.Context(), Proof{Password: good, User: "whoever", Address: "x"})
		if err != nil || a.User != "anna" || a.Subject == "anna" {
			t.Fatal(a, err)
		}
		b, err := d.Admit(t.Context(), Proof{Bearer: good, Address: "x"})
		if err != nil || a.Subject != b.Subject || a.Sessions != b.Sessions || a.Messages != b.Messages {
			t.Error("the same subject does not share its limits", err)
		}
	})
}

func TestTokenUser(t *testing.T) {
	r := newIssuerRig(t)
	d := r.door(Issuer{Keys: writeTest(t, t.TempDir(), "keys.json", string(r.set("ec"))), UserIsSub: true}, "")
	if _, err := d.Admit(t.Context(), Proof{User: "bert", Password: r.token("ec", nil), Address: "x"}); err == nil {
		t.Error("the user name is not looked at")
	}
	if _, err := d.Admit(t.Context(), Proof{User: "anna", Password: r.token("ec", nil), Address: "x"}); err != nil {
		t.Error(err)
	}
}

// Keys change without a restart: in a file, and at an address that is asked no oftener than it must.
func TestKeysRotate(t *testing.T) {
	r := newIssuerRig(t)
	t.Run("file", func(t *testing.T) {
		dir := t.TempDir()
		file := writeTest(t, dir, "keys.json", string(r.set("rs")))
		d := r.door(Issuer{Keys: file}, "")
		id, err := d.Admit(t.Context(), Proof{Bearer: r.token("rs", nil), Address: "x"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Admit(t.Context(), Proof{Bearer: r.token("ec", nil), Address: "x"}); err == nil {
			t.Error("a key that is not there is taken")
		}
		writeTest(t, dir, "keys.json", string(r.set("rs", "ec")))
		if err := d.Load(); err != nil || id.Gone(time.Now()) != nil {
			t.Fatal("a key beside it made it go", err)
		}
		if _, err := d.Admit(t.Context(), Proof{Bearer: r.token("ec", nil), Address: "x"}); err != nil {
			t.Error("the new key:", err)
		}
		writeTest(t, dir, "keys.json", `{"keys":[]}`)
		if err := d.Load(); err == nil || id.Gone(time.Now()) != nil {
			t.Error("an empty set is taken", err)
		}
		writeTest(t, dir, "keys.json", string(r.set("ec")))
		if err := d.Load(); err != nil || id.Gone(time.Now()) == nil {
			t.Error("a token of a key that is gone is still valid", err)
		}
	})
	t.Run("address", func(t *testing.T) {
		var kids atomic.Pointer[[]string]
		kids.Store(&[]string{"rs"})
		var asked, broken atomic.Int64
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			asked.Add(1)
			if broken.Load() > 0 {
				http.Error(w, "no", http.StatusInternalServerError)
				return
			}
			w.Write(r.set(*kids.Load()...))
		}))
		defer server.Close()
		ca := writeTest(t, t.TempDir(), "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
		d := r.door(Issuer{Keys: server.URL, CA: ca}, "")
		now := time.Now()
		clock := func() time.Time { return now }
		d.now, d.issuers[0].keySet.now = clock, clock
		admit := func(kid string) error {
			_, err := d.Admit(t.Context(), Proof{Bearer: r.token(kid, map[string]any{"exp": now.Add(time.Hour).Unix()}), Address: "x" + kid})
			return err
		}
		if err := admit("rs"); err != nil {
			t.Fatal("the first token makes it ask:", err)
		}
		for range 100 {
			if err := admit("ec"); err == nil || errors.Is(err, ErrBusy) {
				t.Fatal(err)
			}
		}
		if n := asked.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		kids.Store(&[]string{"rs", "ec"})
		now = now.Add(unknownKeyWait)
		if err := admit("ec"); err != nil || asked.Load() != 2 {
			t.Error("a new key is not found:", err, asked.Load())
		}
		broken.Store(1)
		now = now.Add(23 * time.Hour)
		if err := admit("ec"); err != nil {
			t.Error("keys are forgotten too soon:", err)
		}
		if err := admit("ed"); !errors.Is(err, ErrBusy) {
			t.Error("it is not known whether the key is good, and not said:", err)
		}
		now = now.Add(2 * time.Hour)
		if err := admit("ec"); !errors.Is(err, ErrBusy) {
			t.Error("keys that nobody vouches for since a day:", err)
		}
		broken.Store(0)
		now = now.Add(unknownKeyWait)
		if err := admit("ec"); err != nil {
			t.Error("they are back:", err)
		}
	})
	t.Run("discovery", func(t *testing.T) {
		mux := http.NewServeMux()
		server := httptest.NewTLSServer(mux)
		defer server.Close()
		named := server.URL
		mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, named, server.URL+"/keys")
		})
		mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) { w.Write(r.set("ec")) })
		ca := writeTest(t, t.TempDir(), "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
		i := Issuer{Issuer: server.URL, Audience: "hearthline", CA: ca}.withDefaults()
		k := &keySet{from: i, now: time.Now}
		if err := k.refresh(t.Context(), 0); err != nil || len(k.keys) != 1 {
			t.Error(len(k.keys), err)
		}
		named = "https://other.example"
		if err := k.refresh(t.Context(), 0); err == nil {
			t.Error("the configuration of another issuer is taken")
		}
		i.CA = ""
		if err := (&keySet{from: i, now: time.Now}).refresh(t.Context(), 0); err == nil {
			t.Error("a certificate of nobody known is taken")
		}
	})
	t.Run("large", func(t *testing.T) {
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Write(make([]byte, 64<<20))
		}))
		defer server.Close()
		if _, err := get(t.Context(), server.Client(), server.URL); err == nil || !strings.Contains(err.Error(), "more than") {
			t.Error(err)
		}
	})
}

func TestUsableKeys(t *testing.T) {
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	r := newIssuerRig(t)
	r.keys["short"] = &jose.JSONWebKey{Key: short, KeyID: "short"}
	enc := *r.keys["rs"]
	enc.Use = "enc"
	r.keys["enc"] = &enc
	for kid, want := range map[string]bool{"rs": true, "ec": true, "ed": true, "short": false, "enc": false} {
		data, err := json.Marshal(r.keys[kid].Public())
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := usable(data); ok != want {
			t.Errorf("%s: usable %t", kid, ok)
		}
	}
	private, err := json.Marshal(r.keys["ec"])
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{`{"kty":"oct","k":"c2VjcmV0"}`, `{"kty":"new"}`, `7`, string(private)} {
		if _, ok := usable([]byte(s)); ok {
			t.Errorf("%.40s is usable", s)
		}
	}
}

func TestRevokedTokens(t *testing.T) {
	r := newIssuerRig(t)
	d := r.door(Issuer{Keys: writeTest(t, t.TempDir(), "keys.json", string(r.set("ec")))}, "- {user: carl, home: h9, token: carl}\n")
	admit := func(claims map[string]any) *Identity {
		id, err := d.Admit(t.Context(), Proof{Bearer: r.token("ec", claims), Address: "x"})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	anna, bert, one, carl := admit(nil), admit(map[string]any{"sub": "bert"}), admit(map[string]any{"sub": "dora", "jti": "7"}), admit(map[string]any{"sub": "carl", "homes": nil})
	if err := os.WriteFile(d.settings.Revocations, []byte("- {name: bert}\n- {token: '7'}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.settings.Credentials, []byte("- {user: carl, home: h8, token: carl}\n# changed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Load(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		id   *Identity
		gone bool
	}{"anna": {anna, false}, "bert": {bert, true}, "token 7": {one, true}, "an entry that changed": {carl, true}} {
		if got := c.id.Gone(time.Now()) != nil; got != c.gone {
			t.Errorf("%s gone: %t", name, got)
		}
	}
	if _, err := d.Admit(t.Context(), Proof{Bearer: r.token("ec", map[string]any{"sub": "bert"}), Address: "x"}); !errors.Is(err, errRevoked) {
		t.Error(err)
	}
}

func FuzzTokens(f *testing.F) {
	r := newIssuerRig(&testing.T{})
	d := NewDoor(Settings{Issuers: []Issuer{{Issuer: "https://id.example", Audience: "hearthline", Keys: "x"}}, Limits: noLimits, Failure: func() {}})
	if err := d.issuers[0].keySet.take(r.set("ec", "rs")); err != nil {
		f.Fatal(err)
	}
	good := r.token("ec", nil)
	f.Add(good)
	f.Add(b64(`{"alg":"none"}`) + "..")
	f.Add(b64(`{"alg":"ES256","kid":"ec"}`) + "." + b64(`{"iss":"https://id.example"}`) + ".AAAA")
	signed := good[:strings.LastIndexByte(good, '.')]
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := d.admitToken(t.Context(), token, ""); err == nil && !strings.HasPrefix(token, signed) {
			t.Errorf("%q is taken", token)
		}
	})
}
