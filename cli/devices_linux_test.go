package cli

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// devices are hubs with a certificate each: crypto/tls keeps one of two that are the same.
type devices struct {
	ca    string // PEM file
	certs []tls.Certificate
}

func newDevices(t *testing.T, n int) *devices {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "devices"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	root, err := x509.CreateCertificate(rand.Reader, authority, authority, &key.PublicKey, key)
	must(err)
	d := &devices{ca: filepath.Join(t.TempDir(), "devices.pem")}
	must(os.WriteFile(d.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root}), 0o600))
	for i := range n {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		name, err := url.Parse(fmt.Sprintf("spiffe://example.com/home-%05d/hub-%05d", i, i))
		must(err)
		cert := &x509.Certificate{SerialNumber: big.NewInt(int64(i) + 2), Subject: pkix.Name{CommonName: fmt.Sprintf("hub-%05d", i), Organization: []string{"Example"}}, URIs: []*url.URL{name},
			NotBefore: authority.NotBefore, NotAfter: authority.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		der, err := x509.CreateCertificate(rand.Reader, cert, authority, &own.PublicKey, key)
		must(err)
		d.certs = append(d.certs, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: own})
	}
	return d
}
