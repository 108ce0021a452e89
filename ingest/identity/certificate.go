package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"hearthline/ingest/names"
)

// ClientCertificates says which certificates of devices are taken (mutual TLS), and who they speak for.
type ClientCertificates struct {
	CA string `yaml:"ca"` // PEM file of the authorities that may sign them; read again when it changes; "" takes none
	// PEM or DER file of the authorities' revocation lists (RFC 5280, section 5); read again when it changes; "" for none
	CRL string `yaml:"crl"`
	// Where a certificate says who it is: cn:{name}, or uri:spiffe://example/{home}/{name}. With {home} it is a hub of that home; without,
	// the credentials file says of which, by the entry whose certificate is the name. "" is cn:{name}
	Name string `yaml:"name"`
}

// Validate says what is wrong with the settings by themselves.
func (c ClientCertificates) Validate() error {
	if c.CA == "" {
		if c != (ClientCertificates{}) {
			return errors.New("client_certificates: without a ca none are taken")
		}
		return nil
	}
	kind, template, ok := strings.Cut(c.template(), ":")
	if !ok || kind != "cn" && kind != "uri" || !strings.Contains(template, "{name}") && !strings.Contains(template, "{home}") ||
		strings.Contains(template, "}{") || strings.Count(template, "{name}") > 1 || strings.Count(template, "{home}") > 1 {
		return fmt.Errorf("client_certificates: name %q; want cn: or uri: and a text with {name}, {home} or both, not side by side", c.Name)
	}
	return nil
}

func (c ClientCertificates) template() string {
	if c.Name == "" {
		return "cn:{name}"
	}
	return c.Name
}

// who reads the name and, where the template has it, the home of a certificate. Of several URIs one must fit.
func (c ClientCertificates) who(cert *x509.Certificate) (name, home string, err error) {
	kind, template, _ := strings.Cut(c.template(), ":")
	said := []string{cert.Subject.CommonName}
	if kind == "uri" {
		said = said[:0]
		for _, u := range cert.URIs {
			said = append(said, u.String())
		}
	}
	found := 0
	for _, s := range said {
		if n, h, ok := fit(template, s); ok {
			name, home, found = n, h, found+1
		}
	}
	if found != 1 {
		return "", "", fmt.Errorf("the certificate does not say who it is (want one %s)", c.template())
	}
	return name, home, nil
}

// fit takes a text apart by a template. What stands for a name ends where the template's next character begins.
func fit(template, s string) (name, home string, ok bool) {
	hasName := strings.Contains(template, "{name}")
	for template != "" {
		if template[0] != '{' {
			if s == "" || s[0] != template[0] {
				return "", "", false
			}
			template, s = template[1:], s[1:]
			continue
		}
		which := template[:strings.IndexByte(template, '}')+1]
		template = template[len(which):]
		end := len(s)
		if template != "" {
			if end = strings.IndexByte(s, template[0]); end < 0 {
				return "", "", false
			}
		}
		value := s[:end]
		if s = s[end:]; names.Bad(value) != "" {
			return "", "", false
		}
		if which == "{home}" {
			home = value
		} else {
			name = value
		}
	}
	if !hasName {
		name = home
	}
	return name, home, s == ""
}

// certMark tells certificates apart: by issuer and serial number.
type certMark [16]byte

func markOf(rawIssuer []byte, serial []byte) (m certMark) {
	sum := sha256.Sum256(append(append(append([]byte(nil), rawIssuer...), 0), serial...))
	copy(m[:], sum[:])
	return m
}

// authorities are who may sign clients' certificates, and what they have revoked.
type authorities struct {
	ClientCertificates
	now   func() time.Time
	pool  atomic.Pointer[x509.CertPool]
	roots atomic.Pointer[map[[32]byte]*signer] // by the certificate's hash
	lists atomic.Pointer[map[certMark]bool]
	certs []*x509.Certificate // by load
	marks [2]FileMark         // by load: of CA and CRL
	stale error               // by load
}

// load reads the files if they have changed.
func (a *authorities) load() error {
	if a.CA == "" {
		return nil
	}
	mark, err := MarkOf(a.CA)
	if err != nil {
		return fmt.Errorf("client_certificates: %w", err)
	}
	again := mark != a.marks[0]
	if again {
		if err := a.loadCA(); err != nil {
			return fmt.Errorf("client_certificates: %s: %w", a.CA, err)
		}
		a.marks[0] = mark
	}
	if a.CRL == "" {
		return nil
	}
	if mark, err = MarkOf(a.CRL); err != nil {
		return fmt.Errorf("client_certificates: %w", err)
	}
	if again || mark != a.marks[1] {
		if err := a.loadCRL(); err != nil {
			return fmt.Errorf("client_certificates: %s: %w", a.CRL, err)
		}
		a.marks[1] = mark
	}
	return a.stale
}

func (a *authorities) loadCA() error {
	data, err := os.ReadFile(a.CA)
	if err != nil {
		return err
	}
	var before map[[32]byte]*signer
	if p := a.roots.Load(); p != nil {
		before = *p
	}
	pool, roots := x509.NewCertPool(), make(map[[32]byte]*signer)
	var certs []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(cert.Raw)
		if roots[sum] = before[sum]; roots[sum] == nil {
			roots[sum] = new(signer)
		}
		pool.AddCert(cert)
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return errors.New("it holds no certificate")
	}
	for sum, s := range before {
		if roots[sum] == nil {
			s.gone.Store(true)
		}
	}
	a.certs = certs
	a.pool.Store(pool)
	a.roots.Store(&roots)
	return nil
}

// asn1Sequence begins whatever is in DER form.
const asn1Sequence = 0x30

// loadCRL reads the revocation lists. One that is past its next update stays in force: what it revoked is still revoked.
func (a *authorities) loadCRL() error {
	data, err := os.ReadFile(a.CRL)
	if err != nil {
		return err
	}
	all, lists := make(map[certMark]bool), 0
	var stale error
	if der := data; len(der) > 0 && der[0] == asn1Sequence { // as authorities publish it
		data = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return err
		}
		if !a.signed(list) {
			return errors.New("a revocation list that none of the authorities has signed")
		}
		if !list.NextUpdate.IsZero() && a.now().After(list.NextUpdate) {
			stale = fmt.Errorf("client_certificates: %s: a revocation list should have been replaced by %s", a.CRL, list.NextUpdate.Format(time.RFC3339))
		}
		for _, e := range list.RevokedCertificateEntries {
			if len(all) == revocationsMax {
				return fmt.Errorf("more than %d revocations", revocationsMax)
			}
			all[markOf(list.RawIssuer, e.SerialNumber.Bytes())] = true
		}
		lists++
	}
	if lists == 0 {
		return errors.New("it holds no revocation list, in PEM or DER form")
	}
	a.stale = stale
	a.lists.Store(&all)
	return nil
}

func (a *authorities) signed(list *x509.RevocationList) bool {
	for _, c := range a.certs {
		if bytes.Equal(c.RawSubject, list.RawIssuer) && list.CheckSignatureFrom(c) == nil {
			return true
		}
	}
	return false
}

// admitCertificate says who comes with a certificate that the handshake has verified. user is what the client says besides; "" is nothing.
func (d *Door) admitCertificate(chains [][]*x509.Certificate, user string) (*Identity, error) {
	by := d.authorities.signerOf(chains)
	if by == nil {
		return nil, errors.New("the client's certificate is not of an authority that is trusted here")
	}
	cert := chains[0][0]
	name, home, err := d.authorities.who(cert)
	if err != nil {
		return nil, err
	}
	if user != "" && user != name {
		return nil, errors.New("the user name is not that of the client's certificate")
	}
	d.mu.RLock()
	base := d.byCertificate[name]
	d.mu.RUnlock()
	var id *Identity
	switch {
	case base != nil:
		id = base.provedAnew()
	case home != "":
		id = d.guest("certificate:"+home+"/"+name, name, []Grant{{Home: home, Role: RoleHub}})
	default:
		return nil, errors.New("the client's certificate is good, and its name not in the credentials file")
	}
	id.Expires, id.by = cert.NotAfter, by
	id.revocable = &revocable{list: &d.revoked, serial: cert.SerialNumber.Text(16), name: name, crl: &d.authorities.lists}
	for _, c := range chains[0][:len(chains[0])-1] {
		id.revocable.marks = append(id.revocable.marks, markOf(c.RawIssuer, c.SerialNumber.Bytes()))
	}
	return id, id.Gone(d.now())
}

// signerOf gives the authority that vouches for the first chain now: it may have been another one when the session began that a ticket
// resumes.
func (a *authorities) signerOf(chains [][]*x509.Certificate) *signer {
	roots := a.roots.Load()
	if roots == nil || len(chains) == 0 || len(chains[0]) < 2 {
		return nil
	}
	return (*roots)[sha256.Sum256(chains[0][len(chains[0])-1].Raw)]
}
