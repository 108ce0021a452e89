package streams

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"hearthline/flow/secret"
)

// TLS is how connections to brokers are encrypted. Empty, it trusts the authorities of this system.
type TLS struct {
	// CA is a PEM file of the authorities that are trusted instead.
	CA string `yaml:"ca"`
	// Certificate and Key are PEM files of this client's own certificate, for brokers that ask for one. They are read
	// again for each connection.
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	// ServerName is the name that must stand in the brokers' certificates, where it is not their address.
	ServerName string `yaml:"server_name"`
}

// Validate checks what belongs together.
func (t *TLS) Validate() error {
	switch {
	case t.Certificate != "" && t.Key == "":
		return errors.New("certificate without its key: set key")
	case t.Key != "" && t.Certificate == "":
		return errors.New("key without its certificate: set certificate")
	}
	return nil
}

// config reads the files.
func (t *TLS) config() (*tls.Config, error) {
	if t == nil {
		return nil, nil
	}
	if err := t.Validate(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("tls.ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls.ca: %s holds no certificate (PEM)", t.CA)
		}
	}
	if t.Certificate != "" {
		read := func() (*tls.Certificate, error) {
			if err := secret.Private(t.Key); err != nil {
				return nil, fmt.Errorf("tls.key: %w", err)
			}
			pair, err := tls.LoadX509KeyPair(t.Certificate, t.Key)
			if err != nil {
				return nil, fmt.Errorf("tls.certificate, tls.key: %w", err)
			}
			return &pair, nil
		}
		if _, err := read(); err != nil {
			return nil, err
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return read() }
	}
	return c, nil
}

// SASL is how this client logs in.
type SASL struct {
	// Mechanism is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
	Mechanism string `yaml:"mechanism" need:"true"`
	// User is the name to log in with.
	User string `yaml:"user" need:"true"`
	// PasswordEnv and PasswordFile name where the password stands: an environment variable, or a file, which is read
	// again for each connection.
	PasswordEnv  string `yaml:"password_env"`
	PasswordFile string `yaml:"password_file"`
}

// Mechanisms are the ways to log in.
var mechanisms = []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}

// Validate checks all but the password.
func (s *SASL) Validate() error {
	var errs []error
	if !slices.Contains(mechanisms, s.Mechanism) {
		errs = append(errs, fmt.Errorf("mechanism %q is not known: write %s", s.Mechanism, strings.Join(mechanisms, ", ")))
	}
	if s.User == "" {
		errs = append(errs, errors.New("user is empty"))
	}
	switch {
	case s.PasswordEnv != "" && s.PasswordFile != "":
		errs = append(errs, errors.New("password_env and password_file are both set: set one"))
	case s.PasswordEnv == "" && s.PasswordFile == "":
		errs = append(errs, errors.New("mechanism needs a password: set password_env to the name of a variable, or password_file to that of a file"))
	case strings.ContainsAny(s.PasswordEnv, "=\x00 ${}"):
		errs = append(errs, errors.New("password_env is the name of a variable, such as KAFKA_PASSWORD, not its value"))
	}
	return errors.Join(errs...)
}

func (s *SASL) password() (string, error) {
	if s.PasswordEnv != "" {
		v := os.Getenv(s.PasswordEnv)
		if v == "" {
			return "", fmt.Errorf("sasl.password_env: the variable %s is not set, or empty", s.PasswordEnv)
		}
		return v, nil
	}
	b, err := secret.File(s.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("sasl.password_file: %w", err)
	}
	if v := strings.TrimRight(string(b), "\r\n"); v != "" {
		return v, nil
	}
	return "", fmt.Errorf("sasl.password_file: %s is empty", s.PasswordFile)
}

// login is a mechanism of kafka-go whose password may change while connections come and go.
type login struct {
	s *SASL

	mu    sync.Mutex
	known string // the password that now was made with
	now   sasl.Mechanism
}

// login checks that there is a password; nil without SASL.
func (s *SASL) login() (*login, error) {
	if s == nil {
		return nil, nil
	}
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("sasl: %w", err)
	}
	l := &login{s: s}
	_, err := l.mechanism()
	return l, err
}

// Name implements sasl.Mechanism.
func (l *login) Name() string { return l.s.Mechanism }

// Start implements sasl.Mechanism.
func (l *login) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	m, err := l.mechanism()
	if err != nil {
		return nil, nil, err
	}
	return m.Start(ctx)
}

func (l *login) mechanism() (sasl.Mechanism, error) {
	password, err := l.s.password()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now != nil && l.known == password {
		return l.now, nil // it remembers the salted password, which takes milliseconds to make
	}
	switch l.s.Mechanism {
	case "PLAIN":
		l.now = plain.Mechanism{Username: l.s.User, Password: password}
	case "SCRAM-SHA-256":
		l.now, err = scram.Mechanism(scram.SHA256, l.s.User, password)
	default:
		l.now, err = scram.Mechanism(scram.SHA512, l.s.User, password)
	}
	if err != nil {
		l.now = nil
		return nil, fmt.Errorf("sasl: the user or the password has characters that %s does not take", l.s.Mechanism)
	}
	l.known = password
	return l.now, nil
}
