// Package identitytest has what tests need to come in by other proofs than a password.
package identitytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"hearthline/ingest/identity"
)

// World is what stands behind proofs: an authority of devices, an issuer of tokens, and API keys, in files of Dir. It has the users
// anna (a hub of home h1, also by a certificate for hub-1), cloud (a service of h1, by APIKey) and bert (viewer of h1).
type World struct {
	Dir    string
	APIKey string

	t      *testing.T
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
	serial int64
	keys   map[string]*ecdsa.PrivateKey // of the issuer, by kid
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// New makes one whose files are there.
func New(t *testing.T) *World {
	w := &World{t: t, Dir: t.TempDir(), caKey: newKey(t), serial: 1, keys: map[string]*ecdsa.PrivateKey{"old": newKey(t), "new": newKey(t)}, APIKey: identity.NewKey()}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "device CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, w.caKey.Public(), w.caKey)
	if err != nil {
		t.Fatal(err)
	}
	if w.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	w.write("devices.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	w.PublishCRL()
	w.PublishKeys("old", "new")
	w.PublishUsers(w.APIKey)
	w.write("revoked.yaml", "")
	return w
}

// PublishUsers writes users.yaml.
func (w *World) PublishUsers(apiKey string) {
	text := "- {user: anna, home: h1, certificate: hub-1}\n- {user: cloud, home: h1, role: service, keys: ['" + identity.HashKey(apiKey) + "']}\n" +
		"- {user: bert, home: h1, hash: '$2y$04$1zBFyCyjGevxr6osTSGwMuVFz84z9nDsw1IJvzqCTOFFnsP1ZKlsO', role: viewer}\n"
	w.write("users.yaml", text)
}

// PublishKeys writes the issuer's keys.json.
func (w *World) PublishKeys(kids ...string) {
	var set jose.JSONWebKeySet
	for _, kid := range kids {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: w.keys[kid].Public(), KeyID: kid, Algorithm: "ES256"})
	}
	data, err := json.Marshal(set)
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("keys.json", string(data))
}

// PublishCRL writes the list of revoked certificates, crl.pem.
func (w *World) PublishCRL(serials ...*big.Int) {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, s := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, w.ca, w.caKey)
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("crl.pem", string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})))
}

// Device issues a certificate.
func (w *World) Device(name string) tls.Certificate {
	w.t.Helper()
	w.serial++
	key := newKey(w.t)
	template := &x509.Certificate{SerialNumber: big.NewInt(w.serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, w.ca, key.Public(), w.caKey)
	if err != nil {
		w.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		w.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Token signs one of home h1 and a role. Kid is old or new.
func (w *World) Token(kid, sub, role string, life time.Duration) string {
	w.t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: w.keys[kid], KeyID: kid}}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := jwt.Signed(s).Claims(map[string]any{"iss": "https://id.example", "aud": "hearthline", "sub": sub, "homes": "h1", "role": role, "exp": time.Now().Add(life).Unix()}).Serialize()
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *World) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.Dir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// Settings are those of a gateway that trusts it.
func (w *World) Settings() (credentials, revocations string, certificates identity.ClientCertificates, tokens []identity.Issuer) {
	in := func(name string) string { return filepath.Join(w.Dir, name) }
	return in("users.yaml"), in("revoked.yaml"), identity.ClientCertificates{CA: in("devices.pem"), CRL: in("crl.pem")},
		[]identity.Issuer{{Issuer: "https://id.example", Audience: "hearthline", Keys: in("keys.json"), Leeway: time.Nanosecond}}
}
