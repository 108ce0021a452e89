package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"
)

// Certificates are the files that [DevCertificates] keeps.
type Certificates struct {
	CA          string // What clients trust
	Certificate string // of the server: localhost, 127.0.0.1, ::1
	Key         string
}

const (
	devCALife     = 10 * 365 * 24 * time.Hour
	devServerLife = 90 * 24 * time.Hour
	devRenew      = 30 * 24 * time.Hour // a certificate with less than this to live is made anew
)

// DevCertificates makes, in dir, a certificate authority for development and a server certificate of it, or keeps those
// that are there until they near their end. All are ECDSA P-256; keys have mode 0600. A renewed server certificate
// comes from the same authority, so that clients go on trusting it.
func DevCertificates(dir string) (Certificates, error) {
	c := Certificates{CA: filepath.Join(dir, "ca.pem"), Certificate: filepath.Join(dir, "server.pem"), Key: filepath.Join(dir, "server-key.pem")}
	caKeyFile := filepath.Join(dir, "ca-key.pem")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return c, fmt.Errorf("development certificates: %w", err)
	}
	ca, caKey, err := readPair(c.CA, caKeyFile)
	if err != nil {
		return c, fmt.Errorf("development certificates: %w; remove %s to have them made anew", err, dir)
	}
	if ca == nil || time.Until(ca.NotAfter) < devRenew {
		template := certificate("Hearthline development CA", devCALife)
		template.IsCA, template.BasicConstraintsValid = true, true
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		if ca, caKey, err = makePair(template, nil, nil, c.CA, caKeyFile); err != nil {
			return c, fmt.Errorf("development certificates: %w", err)
		}
	}
	server, _, err := readPair(c.Certificate, c.Key)
	if err == nil && server != nil && time.Until(server.NotAfter) >= devRenew && server.CheckSignatureFrom(ca) == nil {
		return c, nil
	}
	template := certificate("localhost", devServerLife)
	template.DNSNames = []string{"localhost"}
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} // gateways show it to each other, too
	if _, _, err := makePair(template, ca, caKey, c.Certificate, c.Key); err != nil {
		return c, fmt.Errorf("development certificates: %w", err)
	}
	return c, nil
}

func certificate(name string, life time.Duration) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // the system has no randomness: crypto/rand says it never returns
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name, Organization: []string{"Hearthline development"}},
		NotBefore:    time.Now().Add(-time.Hour), // clocks differ
		NotAfter:     time.Now().Add(life),
	}
}

// readPair reads a certificate and its key; nil when the files are not there.
func readPair(certFile, keyFile string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	certPEM, err := os.ReadFile(certFile) // #nosec G304 -- a file of the data folder
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	keyPEM, err := os.ReadFile(keyFile) // #nosec G304 -- a file of the data folder
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, nil, fmt.Errorf("%s or %s is not PEM", certFile, keyFile)
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", certFile, err)
	}
	key, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, nil, nil // a start was cut off between the two files
	}
	return cert, key, nil
}

func makePair(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey, certFile, keyFile string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	if err := WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return nil, nil, err
	}
	if err := WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

// WriteFile replaces a file at once: a reader sees the old one or the new one.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // Gone by its name when all went well
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	if err := errors.Join(f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// DevUser is a user that [DevCredentials] is to make.
type DevUser struct {
	User, Home string
	Devices    []string
	Role       string  // RoleHub when empty
	Homes      []Grant // instead of Home, Devices and Role
}

// DevCredentials keeps, in dir, credentials.yaml with an entry for each user and passwords.json with their random
// passwords, both 0600. Users that are there keep their password; users not named are kept as they are. It returns
// the path of credentials.yaml and the passwords by user.
func DevCredentials(dir string, users ...DevUser) (file string, passwords map[string]string, err error) {
	file = filepath.Join(dir, "credentials.yaml")
	passwordsFile := filepath.Join(dir, "passwords.json")
	wrap := func(err error) error { return fmt.Errorf("development credentials: %w", err) }
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return file, nil, wrap(err)
	}
	passwords = make(map[string]string)
	if data, err := os.ReadFile(passwordsFile); err == nil { // #nosec G304 -- a file of the data folder
		if err := json.Unmarshal(data, &passwords); err != nil {
			return file, nil, wrap(fmt.Errorf("%s: %w; remove it to have passwords made anew", passwordsFile, err))
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return file, nil, wrap(err)
	}
	var all []Credential
	if f, err := os.Open(file); err == nil { // #nosec G304 -- a file of the data folder
		all, err = ReadCredentials(f)
		f.Close()
		if err != nil {
			return file, nil, wrap(fmt.Errorf("%s: %w", file, err))
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return file, nil, wrap(err)
	}
	all = devEntries(all, passwords, users)
	secrets, err := json.MarshalIndent(passwords, "", "  ")
	if err != nil {
		return file, nil, wrap(err)
	}
	entries, err := yaml.Marshal(all)
	if err != nil {
		return file, nil, wrap(err)
	}
	// Passwords first: an entry whose password nobody knows would be of no use.
	if err := errors.Join(WriteFile(passwordsFile, secrets, 0o600), WriteFile(file, entries, 0o600)); err != nil {
		return file, nil, wrap(err)
	}
	return file, passwords, nil
}

// devEntries brings the entries up to what users says, and makes the passwords that are missing.
func devEntries(all []Credential, passwords map[string]string, users []DevUser) []Credential {
	at := make(map[string]int, len(all))
	for i, c := range all {
		at[c.User] = i
	}
	for _, u := range users {
		i, ok := at[u.User]
		if !ok {
			i = len(all)
			all = append(all, Credential{User: u.User})
			at[u.User] = i
		}
		c := &all[i]
		c.Grant, c.Homes = Grant{Home: u.Home, Devices: u.Devices, Role: u.Role}, u.Homes
		if passwords[u.User] == "" || c.Hash == "" {
			passwords[u.User] = rand.Text()
			c.Hash = devHash(passwords[u.User])
		}
	}
	return all
}

// devHash hashes one of our own random passwords. They have 128 bits of chance, which nobody guesses: the least that
// argon2id takes is enough, and a thousand simulated hubs start in a second instead of a minute.
func devHash(password string) string { return hashPassword(password, 64, 1) }
