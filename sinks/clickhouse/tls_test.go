package clickhouse

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// selfSigned makes a certificate that is its own authority, good for both sides, and writes it as name.pem and name-key.pem.
func selfSigned(t *testing.T, dir, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + "-key.pem": {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// Both sides show certificates, and those of the next connection are what stands in the files then.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	server, client := selfSigned(t, dir, "server"), selfSigned(t, dir, "client")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	clients := x509.NewCertPool()
	clients.AddCert(client.Leaf)
	var shown atomic.Pointer[tls.Certificate]
	shown.Store(&server)
	config := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return shown.Load(), nil }, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert}
	seen := make(chan string, 1)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conn := tls.Server(c, config)
			if err := conn.Handshake(); err != nil {
				seen <- err.Error()
			} else {
				seen <- conn.ConnectionState().PeerCertificates[0].Subject.CommonName
			}
			conn.Close()
		}
	}()
	s := New()
	s.Address, s.TLS, s.TLSCA, s.TLSServerName = ln.Addr().String(), true, filepath.Join(dir, "server.pem"), "server"
	s.TLSCertificate, s.TLSKey = filepath.Join(dir, "client.pem"), filepath.Join(dir, "client-key.pem")
	opt, err := s.options()
	if err != nil {
		t.Fatal(err)
	}
	dial := func() (err error) {
		c, err := opt.DialContext(t.Context(), s.Address)
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := dial(); err != nil || <-seen != "client" {
		t.Fatal("queries:", err)
	}
	c, err := s.insertOptions(opt).ClientOptions.Dialer.DialContext(t.Context(), "tcp", s.Address)
	if err != nil || <-seen != "client" {
		t.Fatal("inserts:", err)
	}
	c.Close()
	renewed := selfSigned(t, dir, "server")
	shown.Store(&renewed)
	if err := dial(); err != nil || <-seen != "client" {
		t.Error("the new authority was not read:", err)
	}
	selfSigned(t, dir, "client")
	if err := dial(); err == nil {
		if got := <-seen; got == "client" {
			t.Error("the old certificate is still shown")
		}
	}
	s.TLSCA = ""
	if err := dial(); err == nil {
		t.Error("an authority that the system does not know is trusted")
	}
	for _, c := range []struct {
		set  func(*Sink)
		want string
	}{
		{func(s *Sink) { s.TLS = false }, "set tls"},
		{func(s *Sink) { s.TLSKey = "" }, "belong together"},
		{func(s *Sink) { s.TLSCA = filepath.Join(dir, "none.pem") }, "tls_ca"},
		{func(s *Sink) { s.TLSCA = filepath.Join(dir, "server-key.pem") }, "no certificate"},
		{func(s *Sink) { _ = os.Chmod(s.TLSKey, 0o644) }, "chmod 600"},
	} {
		other := New()
		other.TLS, other.TLSCA, other.TLSCertificate, other.TLSKey = true, filepath.Join(dir, "server.pem"), s.TLSCertificate, s.TLSKey
		c.set(other)
		if _, err := other.options(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v; want %s", err, c.want)
		}
	}
}
