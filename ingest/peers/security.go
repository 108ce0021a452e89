package peers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"hearthline/flow/secret"
)

// security is mutual TLS whose files are read again when they change: each handshake takes what is in force.
type security struct {
	settings *Settings

	mu     sync.Mutex
	looked time.Time
	marks  [3]mark
	cert   tls.Certificate
	roots  *x509.CertPool
}

// mark tells a file's versions apart.
type mark struct {
	at   time.Time
	size int64
}

// lookEvery is how often handshakes look whether the files have changed.
const lookEvery = time.Second

func newSecurity(s *Settings) (*security, error) {
	c := &security{settings: s}
	if _, _, err := c.files(); err != nil {
		return nil, err
	}
	return c, nil
}

// files gives the certificate and the authorities in force. What cannot be read leaves what was read before.
func (c *security) files() (tls.Certificate, *x509.CertPool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.roots != nil && time.Since(c.looked) < lookEvery {
		return c.cert, c.roots, nil
	}
	c.looked = time.Now()
	err := c.read()
	if c.roots != nil {
		err = nil
	}
	return c.cert, c.roots, err
}

func (c *security) read() error {
	var marks [3]mark
	for i, name := range []string{c.settings.Certificate, c.settings.Key, c.settings.CA} {
		st, err := os.Stat(name)
		if err != nil {
			return fmt.Errorf("peers: %w", err)
		}
		marks[i] = mark{st.ModTime(), st.Size()}
	}
	if marks == c.marks {
		return nil
	}
	if err := secret.Private(c.settings.Key); err != nil {
		return fmt.Errorf("peers.key: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(c.settings.Certificate, c.settings.Key)
	if err != nil {
		return fmt.Errorf("peers.certificate, peers.key: %w", err)
	}
	pem, err := os.ReadFile(c.settings.CA)
	if err != nil {
		return fmt.Errorf("peers.ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("peers.ca: %s holds no certificate (PEM)", c.settings.CA)
	}
	c.cert, c.roots, c.marks = cert, roots, marks
	return nil
}

// expires says when the certificate in force ends.
func (c *security) expires() time.Time {
	cert, _, err := c.files()
	if err != nil || cert.Leaf == nil {
		return time.Time{}
	}
	return cert.Leaf.NotAfter
}

// config is that of one handshake. Who dials and who listens show the same kind of certificate, and both look at it.
func (c *security) config() (*tls.Config, error) {
	cert, roots, err := c.files()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ServerName: c.settings.ServerName,
		RootCAs: roots, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, VerifyConnection: c.named,
	}, nil
}

// named holds who dials to the name, too: the authority may sign for others than gateways.
func (c *security) named(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("no certificate was shown")
	}
	if err := s.PeerCertificates[0].VerifyHostname(c.settings.ServerName); err != nil {
		return fmt.Errorf("not a gateway's certificate (peers.server_name): %w", err)
	}
	return nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *security) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := c.config()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, conn)
}

// ServerHandshake implements credentials.TransportCredentials.
func (c *security) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := c.config()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(cfg).ServerHandshake(conn)
}

// Info implements credentials.TransportCredentials.
func (c *security) Info() credentials.ProtocolInfo {
	//lint:ignore SA1019 gRPC still names the connection by it
	return credentials.ProtocolInfo{SecurityProtocol: "tls", ServerName: c.settings.ServerName}
}

// Clone implements credentials.TransportCredentials.
func (c *security) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials. The name is a setting.
func (c *security) OverrideServerName(string) error {
	return errors.New("peers: the server's name is a setting")
}
