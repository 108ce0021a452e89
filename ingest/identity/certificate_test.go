package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority signs certificates of devices, in memory.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

func newAuthority(t *testing.T, name string) *authority {
	template := certificate(name, time.Hour)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	dir := t.TempDir()
	cert, key, err := makePair(template, nil, nil, filepath.Join(dir, "ca.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, cert: cert, key: key, next: 100}
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// issue gives the chain that a handshake would verify.
func (a *authority) issue(cn string, uris ...string) [][]*x509.Certificate {
	a.t.Helper()
	a.next++
	template := &x509.Certificate{SerialNumber: big.NewInt(a.next), Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			a.t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return [][]*x509.Certificate{{cert, a.cert}}
}

// revoke signs a list.
func (a *authority) revoke(next time.Time, serials ...int64) string {
	a.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: next}
	for _, s := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

func TestNamesOfCertificates(t *testing.T) {
	a := newAuthority(t, "CA")
	for _, c := range []struct {
		template, cn string
		uris         []string
		name, home   string // "" of both is refused
	}{
		{"", "hub-1", nil, "hub-1", ""},
		{"cn:{name}", "a/b", nil, "", ""},
		{"cn:{name}", "+", nil, "", ""},
		{"cn:{name}", "", nil, "", ""},
		{"cn:{home}", "h1", nil, "h1", "h1"},
		{"cn:{home}.{name}", "h1.hub.x", nil, "hub.x", "h1"},
		{"cn:{home}.{name}", "h1", nil, "", ""},
		{"cn:hub-{name}", "hub-7", nil, "7", ""},
		{"cn:hub-{name}", "lamp-7", nil, "", ""},
		{"uri:spiffe://x.example/{home}/{name}", "ignored", []string{"https://else", "spiffe://x.example/h1/hub"}, "hub", "h1"},
		{"uri:spiffe://x.example/{home}/{name}", "h1", nil, "", ""},
		{"uri:spiffe://x.example/{home}/{name}", "", []string{"spiffe://y.example/h1/hub"}, "", ""},
		{"uri:spiffe://x.example/{home}/{name}", "", []string{"spiffe://x.example/h1/hub/more"}, "", ""},
		{"uri:spiffe://x.example/{home}/{name}", "", []string{"spiffe://x.example/h1/a", "spiffe://x.example/h2/a"}, "", ""},
		{"uri:spiffe://x.example/{home}/{name}", "", []string{"spiffe://x.example//hub"}, "", ""},
	} {
		s := ClientCertificates{CA: "x", Name: c.template}
		if err := s.Validate(); err != nil {
			t.Error(err)
		}
		name, home, err := s.who(a.issue(c.cn, c.uris...)[0][0])
		if name != c.name || home != c.home || (err == nil) != (c.name != "") {
			t.Errorf("%s of %q %q: %q in home %q, %v", c.template, c.cn, c.uris, name, home, err)
		}
	}
	for _, bad := range []string{"{name}", "dns:{name}", "cn:hub", "cn:{home}{name}", "cn:{name}{name}"} {
		if err := (ClientCertificates{CA: "x", Name: bad}).Validate(); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
	if err := (ClientCertificates{CRL: "x"}).Validate(); err == nil {
		t.Error("a revocation list without an authority")
	}
}

func TestClientCertificates(t *testing.T) {
	dir := t.TempDir()
	a, other := newAuthority(t, "CA 1"), newAuthority(t, "CA 2")
	d := NewDoor(Settings{
		Credentials: writeTest(t, dir, "c.yaml", "- {user: anna, home: h1, certificate: hub-1}\n- {user: bert, home: h2, hash: '"+HashPassword("secret")+"'}\n"),
		Clients:     ClientCertificates{CA: writeTest(t, dir, "ca.pem", a.pem()+other.pem()), CRL: writeTest(t, dir, "crl.pem", a.revoke(time.Now().Add(time.Hour)))},
		Revocations: writeTest(t, dir, "revoked.yaml", ""), Limits: noLimits, Failure: func() {},
	})
	if err := d.Load(); err != nil || d.ClientCAs() == nil {
		t.Fatal(err)
	}
	admit := func(chains [][]*x509.Certificate, user string) (*Identity, error) {
		return d.Admit(t.Context(), Proof{User: user, Chains: chains, Address: "x" + user})
	}
	must := func(chains [][]*x509.Certificate) *Identity {
		t.Helper()
		id, err := admit(chains, "")
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	first, second, third, fourth := a.issue("hub-1"), a.issue("hub-1"), a.issue("hub-1"), other.issue("hub-1")
	ids := []*Identity{must(first), must(second), must(third), must(fourth)}
	if id := ids[0]; id.User != "anna" || id.Subject != "anna" || id.OnlyHome() != "h1" || !id.Expires.Equal(first[0][0].NotAfter) {
		t.Errorf("%+v", id)
	}
	if _, err := admit(first, "bert"); err == nil {
		t.Error("a certificate speaks for another user")
	}
	if _, err := admit(first, "hub-1"); err != nil {
		t.Error(err)
	}
	if _, err := admit(a.issue("hub-2"), ""); err == nil || !strings.Contains(err.Error(), "not in the credentials file") {
		t.Error(err)
	}
	if _, err := admit(newAuthority(t, "CA 1").issue("hub-1"), ""); err == nil {
		t.Error("another authority of the same name")
	}
	if id, err := d.Admit(t.Context(), Proof{User: "bert", Password: "secret", Chains: first, Address: "y"}); err != nil || id.User != "bert" {
		t.Error("a password beside a certificate counts", err)
	}
	if _, err := d.Admit(t.Context(), Proof{User: "bert", Password: "wrong", Chains: first, Address: "y"}); err == nil {
		t.Error("a wrong password beside a good certificate")
	}
	writeTest(t, dir, "crl.pem", a.revoke(time.Now().Add(time.Hour), first[0][0].SerialNumber.Int64()))
	writeTest(t, dir, "revoked.yaml", "- serial: '"+second[0][0].SerialNumber.Text(16)+"'\n")
	writeTest(t, dir, "ca.pem", a.pem())
	if err := d.Load(); err != nil {
		t.Fatal(err)
	}
	for i, gone := range []bool{true, true, false, true} { // by the list, by the file, not, with its authority
		if got := ids[i].Gone(time.Now()); (got != nil) != gone {
			t.Errorf("certificate %d: %v", i+1, got)
		}
	}
	for i, chains := range [][][]*x509.Certificate{first, second, fourth} {
		if _, err := admit(chains, ""); err == nil {
			t.Errorf("certificate %d of those that are gone comes in again", i+1)
		}
	}
	if ids[2].Gone(third[0][0].NotAfter.Add(time.Second)) == nil {
		t.Error("a certificate that has expired is still good")
	}
	t.Run("lists", func(t *testing.T) {
		writeTest(t, dir, "crl.pem", other.revoke(time.Now().Add(time.Hour), third[0][0].SerialNumber.Int64())+"\n")
		if err := d.Load(); err == nil || ids[2].Gone(time.Now()) != nil || ids[0].Gone(time.Now()) == nil {
			t.Error("the list of an authority that is not trusted takes effect", err)
		}
		writeTest(t, dir, "crl.pem", a.revoke(time.Now().Add(-time.Minute), third[0][0].SerialNumber.Int64())+"\n\n")
		if err := d.Load(); err == nil || !strings.Contains(err.Error(), "replaced by") || ids[2].Gone(time.Now()) == nil {
			t.Error("a late list is not said to be late, or not in force", err)
		}
		block, _ := pem.Decode([]byte(a.revoke(time.Now().Add(time.Hour), first[0][0].SerialNumber.Int64())))
		writeTest(t, dir, "crl.pem", string(block.Bytes))
		if err := d.Load(); err != nil || ids[2].Gone(time.Now()) != nil || ids[0].Gone(time.Now()) == nil {
			t.Error("a list in DER form is not read", err)
		}
	})
	if _, err := NewDoor(Settings{Clients: ClientCertificates{CA: filepath.Join(dir, "ca.pem"), Name: "cn:{home}"}, Limits: noLimits, Failure: func() {}}).admitCertificate(first, ""); err == nil {
		t.Error("before its files are read it lets somebody in")
	}
}

func TestKeys(t *testing.T) {
	key := NewKey()
	d := NewDoor(Settings{Credentials: writeTest(t, t.TempDir(), "c.yaml", "- {user: cloud, homes: [{home: h1, role: service}, {home: h2, role: service}], keys: ['"+HashKey(key)+"'], limits: {connections: 1}}\n"),
		Limits: noLimits, Failure: func() {}})
	if err := d.Load(); err != nil {
		t.Fatal(err)
	}
	id, err := d.Admit(t.Context(), Proof{Bearer: key, Address: "x"})
	if err != nil || id.User != "cloud" || len(id.Grants) != 2 || id.SessionsMax != 1 {
		t.Fatal(id, err)
	}
	for _, p := range []Proof{{Bearer: NewKey()}, {Bearer: ""}, {User: "cloud", Password: key}, {User: "cloud", Password: ""}, {User: "cloud", Password: HashKey(key)}, {Bearer: HashKey(key)}} {
		p.Address = "y"
		if _, err := d.Admit(t.Context(), p); err == nil || strings.Contains(err.Error(), key) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	for i := range 2 * failureBurst {
		_, err = d.Admit(t.Context(), Proof{Bearer: NewKey(), Address: "z"})
		if i < failureBurst && err != errKey {
			t.Fatal(err)
		}
	}
	if err != ErrAttempts {
		t.Error("an address may try keys for ever:", err)
	}
	if _, err := d.Admit(t.Context(), Proof{Bearer: key, Address: "z"}); err != nil {
		t.Error("a good key suffers for others of its address:", err)
	}
}
