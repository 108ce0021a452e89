package apache

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Security is what brokers ask of clients. The brokers among each other use certificates of their own, and a user
// without rules may do nothing (StandardAuthorizer).
type Security struct {
	// TLS encrypts the clients' connections. Certificates are made on the spot: see Cluster.CA.
	TLS bool
	// ClientCertificates refuses clients without a certificate of Cluster.Certificate, whose name is their user's. Only
	// with TLS and without Users.
	ClientCertificates bool
	// Users and their passwords, who may log in by PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512. nil asks for no login, and
	// then everybody is User:ANONYMOUS.
	Users map[string]string
}

func (s *Security) check() error {
	if s == nil {
		return nil
	}
	if s.ClientCertificates && (!s.TLS || s.Users != nil) {
		return errors.New("kafka: client certificates need TLS, and no Users: who logs in is known by that")
	}
	for name := range s.Users {
		if name == "" || strings.ContainsAny(name, "\"\\ \n") {
			return fmt.Errorf("kafka: user %q: want a plain name", name)
		}
	}
	return nil
}

// properties adds to a broker's settings.
func (s *Security) properties(p map[string]string, n *node, a *authority) {
	if s == nil {
		return
	}
	client := "PLAINTEXT"
	switch {
	case s.TLS && s.Users != nil:
		client = "SASL_SSL"
	case s.TLS:
		client = "SSL"
	case s.Users != nil:
		client = "SASL_PLAINTEXT"
	}
	maps.Copy(p, map[string]string{
		"listener.security.protocol.map": "CLIENT:" + client + ",INTERNAL:SSL,CONTROLLER:SSL",
		"ssl.keystore.type":              "PEM",
		"ssl.keystore.location":          a.path("kafka.pem"),
		"ssl.truststore.type":            "PEM",
		"ssl.truststore.location":        a.path("ca.pem"),
		"ssl.client.auth":                "required",
		"authorizer.class.name":          "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users":                    "User:CN=kafka",
		// What a client may not see does not exist for it, and it learns so at once.
		"allow.everyone.if.no.acl.found": "false",
	})
	if !s.ClientCertificates {
		p["listener.name.client.ssl.client.auth"] = "none"
	}
	if s.Users == nil {
		return
	}
	const scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
	plain := "org.apache.kafka.common.security.plain.PlainLoginModule required"
	for _, name := range slices.Sorted(maps.Keys(s.Users)) {
		plain += fmt.Sprintf(` user_%s="%s"`, name, strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s.Users[name]))
	}
	maps.Copy(p, map[string]string{
		"listener.name.client.sasl.enabled.mechanisms":        "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
		"listener.name.client.plain.sasl.jaas.config":         plain + ";",
		"listener.name.client.scram-sha-256.sasl.jaas.config": scram,
		"listener.name.client.scram-sha-512.sasl.jaas.config": scram,
	})
}

// scramIterations is the least that Kafka takes: what is guarded here is not worth more time.
const scramIterations = 4096

// makeUsers tells the cluster the users' SCRAM secrets, and waits until they hold.
func (c *Cluster) makeUsers(ctx context.Context) error {
	if c.Security == nil || len(c.Security.Users) == 0 {
		return nil
	}
	cl, err := c.Admin()
	if err != nil {
		return err
	}
	defer cl.Close()
	for mechanism := int8(1); mechanism <= 2; mechanism++ { // Kafka takes a user once a request
		req := kmsg.NewPtrAlterUserSCRAMCredentialsRequest()
		for _, name := range slices.Sorted(maps.Keys(c.Security.Users)) {
			u, err := scramSecret(name, c.Security.Users[name], mechanism)
			if err != nil {
				return err
			}
			req.Upsertions = append(req.Upsertions, u)
		}
		res, err := req.RequestWith(ctx, cl)
		if err != nil {
			return fmt.Errorf("make users: %w", err)
		}
		for _, r := range res.Results {
			if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
				return fmt.Errorf("make user %s: %w", r.User, err)
			}
		}
	}
	return nil
}

// scramSecret is what a broker keeps of a password (RFC 5802); mechanism 1 is SCRAM-SHA-256, 2 SCRAM-SHA-512.
func scramSecret(user, password string, mechanism int8) (kmsg.AlterUserSCRAMCredentialsRequestUpsertion, error) {
	u := kmsg.NewAlterUserSCRAMCredentialsRequestUpsertion()
	u.Name, u.Mechanism, u.Iterations, u.Salt = user, mechanism, scramIterations, make([]byte, 24)
	_, _ = rand.Read(u.Salt)
	var err error
	if mechanism == 1 {
		u.SaltedPassword, err = pbkdf2.Key(sha256.New, password, u.Salt, scramIterations, sha256.Size)
	} else {
		u.SaltedPassword, err = pbkdf2.Key(sha512.New, password, u.Salt, scramIterations, sha512.Size)
	}
	if err != nil {
		return u, fmt.Errorf("user %s: %w", user, err)
	}
	return u, nil
}

// CA is the file (PEM) of the authority that signed the brokers' certificates; "" without security. It is there once
// the cluster is ready, and goes with the cluster's directory.
func (c *Cluster) CA() string {
	if c.authority == nil {
		return ""
	}
	return c.authority.path("ca.pem")
}

// Certificate makes a certificate for a client of that name, as two files (PEM). Its user is User:CN=name.
func (c *Cluster) Certificate(name string) (certificate, key string, err error) {
	if c.authority == nil {
		return "", "", errors.New("kafka: the cluster has no security")
	}
	if err := c.authority.issue(name); err != nil {
		return "", "", fmt.Errorf("kafka: certificate of %s: %w", name, err)
	}
	return c.authority.path(name + ".crt"), c.authority.path(name + ".key"), nil
}

// authority signs the certificates of one cluster. It lives in memory: what it signed is made anew with every Run.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	own  tls.Certificate // of the brokers
}

// certificateLife is longer than any development cluster is left running.
const certificateLife = 365 * 24 * time.Hour

func (s *Security) authority(dir string) (*authority, error) {
	if s == nil {
		return nil, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("kafka: certificates: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("kafka: certificates: %w", err)
	}
	a := &authority{dir: dir, key: key}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Kafka on this machine"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certificateLife), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, key.Public(), key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err == nil {
		err = os.WriteFile(a.path("ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
	}
	if err == nil {
		err = a.issue("kafka")
	}
	if err == nil {
		a.own, err = tls.LoadX509KeyPair(a.path("kafka.crt"), a.path("kafka.key"))
	}
	if err != nil {
		return nil, fmt.Errorf("kafka: certificates: %w", err)
	}
	return a, nil
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// issue signs a certificate for loopback and leaves it as name.crt, name.key and, both in one, name.pem.
func (a *authority) issue(name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certificateLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	return errors.Join(os.WriteFile(a.path(name+".crt"), certPEM, 0o600), os.WriteFile(a.path(name+".key"), keyPEM, 0o600),
		os.WriteFile(a.path(name+".pem"), slices.Concat(keyPEM, certPEM), 0o600))
}

// config is TLS with the brokers' own certificate, which may do everything.
func (a *authority) config() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{a.own}, MinVersion: tls.VersionTLS12}
}
