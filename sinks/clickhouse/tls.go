package clickhouse

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"hearthline/flow/secret"
)

// tlsConfig reads the files; nil where the connection is not encrypted.
func (s *Sink) tlsConfig() (*tls.Config, error) {
	named := s.TLSCA != "" || s.TLSCertificate != "" || s.TLSKey != "" || s.TLSServerName != ""
	switch {
	case !s.TLS && named:
		return nil, errors.New("tls_ca, tls_certificate, tls_key and tls_server_name are of an encrypted connection: set tls")
	case !s.TLS:
		return nil, nil
	case (s.TLSCertificate == "") != (s.TLSKey == ""):
		return nil, errors.New("tls_certificate and tls_key belong together")
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.TLSServerName}
	if s.TLSCA != "" {
		pem, err := os.ReadFile(s.TLSCA)
		if err != nil {
			return nil, fmt.Errorf("tls_ca: %w", err)
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls_ca: %s holds no certificate (PEM)", s.TLSCA)
		}
	}
	if s.TLSCertificate != "" {
		if err := secret.Private(s.TLSKey); err != nil {
			return nil, fmt.Errorf("tls_key: %w", err)
		}
		pair, err := tls.LoadX509KeyPair(s.TLSCertificate, s.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("tls_certificate, tls_key: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
