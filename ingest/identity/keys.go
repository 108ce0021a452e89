package identity

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Limits of key sets.
const (
	keysMax        = 100
	keysBytesMax   = 1 << 20
	keysTimeout    = 5 * time.Second
	unknownKeyWait = 30 * time.Second // a key that is not there is looked for again no sooner
	rsaBitsMin     = 2048
)

// signer is what an identity was proved by: a key of an issuer, or an authority of certificates. When it is trusted no more, nor are those it
// vouched for.
type signer struct{ gone atomic.Bool }

// signingKey is one public key of an issuer.
type signingKey struct {
	jose.JSONWebKey
	print string // RFC 7638
	*signer
}

// keySet holds the keys of an issuer, and reads them again.
type keySet struct {
	from Issuer
	now  func() time.Time

	mu   sync.RWMutex
	keys []signingKey
	read time.Time // when they were last read

	fetch sync.Mutex
	tried time.Time // by fetch
	mark  FileMark  // by fetch
}

func (k *keySet) isFile() bool { return k.from.Keys != "" && !strings.Contains(k.from.Keys, "://") }

// find gives the key of a token's header. One that is not known is looked for at the issuer, but not often: tokens with made-up keys cost it
// nothing.
func (k *keySet) find(ctx context.Context, kid string, algorithm string) (signingKey, error) {
	key, err := k.known(kid, algorithm)
	if err == nil || k.isFile() {
		return key, err
	}
	if err := k.refresh(ctx, unknownKeyWait); err != nil {
		return key, fmt.Errorf("%w: %w", errKeys, err)
	}
	return k.known(kid, algorithm)
}

// errKeys says that it is not known whether a token is good.
var errKeys = errors.New("the keys of the token's issuer cannot be read now")

func (k *keySet) known(kid, algorithm string) (found signingKey, err error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if !k.isFile() && k.now().Sub(k.read) > k.from.KeysLast {
		return found, errKeys
	}
	n := 0
	for _, key := range k.keys {
		if (kid == "" || key.KeyID == kid) && (key.Algorithm == "" || key.Algorithm == algorithm) {
			found, n = key, n+1
		}
	}
	if n != 1 { // a token that names none is good for an issuer with one key
		return signingKey{}, errors.New("the token's key is not one of its issuer's")
	}
	return found, nil
}

// load reads a file of keys if it has changed.
func (k *keySet) load() error {
	if !k.isFile() {
		return nil
	}
	k.fetch.Lock()
	defer k.fetch.Unlock()
	mark, err := MarkOf(k.from.Keys)
	if err != nil || mark == k.mark {
		return err
	}
	data, err := os.ReadFile(k.from.Keys)
	if err != nil {
		return err
	}
	if err := k.take(data); err != nil {
		return fmt.Errorf("%s: %w", k.from.Keys, err)
	}
	k.mark = mark
	return nil
}

// refresh reads the address, unless that was tried less than least ago.
func (k *keySet) refresh(ctx context.Context, least time.Duration) error {
	k.fetch.Lock()
	defer k.fetch.Unlock()
	if k.now().Sub(k.tried) < least {
		return nil
	}
	k.tried = k.now()
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	client, err := k.client()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	at := k.from.Keys
	if at == "" {
		if at, err = k.discover(ctx, client); err != nil {
			return err
		}
	}
	data, err := get(ctx, client, at)
	if err != nil {
		return err
	}
	if err := k.take(data); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	return nil
}

// client is made for each reading: its authorities may have changed.
func (k *keySet) client() (*http.Client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if k.from.CA != "" {
		pem, err := os.ReadFile(k.from.CA)
		if err != nil {
			return nil, err
		}
		if config.RootCAs = x509.NewCertPool(); !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", k.from.CA)
		}
	}
	return &http.Client{
		Transport: &http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if r.URL.Scheme != "https" || len(via) > 3 {
				return errors.New("redirected away from https, or too often")
			}
			return nil
		},
	}, nil
}

// discover asks OpenID Connect Discovery 1.0, section 4, where the keys are.
func (k *keySet) discover(ctx context.Context, client *http.Client) (string, error) {
	at := strings.TrimSuffix(k.from.Issuer, "/") + "/.well-known/openid-configuration"
	data, err := get(ctx, client, at)
	if err != nil {
		return "", err
	}
	var doc struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return "", fmt.Errorf("%s: %w", at, err)
	}
	if doc.Issuer != k.from.Issuer || !strings.HasPrefix(doc.Keys, "https://") {
		return "", fmt.Errorf("%s speaks of issuer %.100q with keys at %.100q; want issuer %q, and https", at, doc.Issuer, doc.Keys, k.from.Issuer)
	}
	return doc.Keys, nil
}

func get(ctx context.Context, client *http.Client, at string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", at, res.Status)
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, keysBytesMax+1))
	if err == nil && len(data) > keysBytesMax {
		err = fmt.Errorf("%s: more than %d bytes", at, keysBytesMax)
	}
	return data, err
}

// take puts a key set in the place of the one before. Keys that cannot be used here are left out, those that are gone revoked.
func (k *keySet) take(data []byte) error {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return fmt.Errorf("not a JSON Web Key Set: %w", err)
	}
	if len(set.Keys) > keysMax {
		return fmt.Errorf("%d keys; at most %d", len(set.Keys), keysMax)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	before := make(map[string]*signer, len(k.keys))
	for _, key := range k.keys {
		before[key.KeyID+"\x00"+key.print] = key.signer
	}
	var keys []signingKey
	for _, raw := range set.Keys {
		key, ok := usable(raw)
		if !ok {
			continue
		}
		name := key.KeyID + "\x00" + key.print
		if key.signer = before[name]; key.signer == nil {
			key.signer = new(signer)
		}
		delete(before, name)
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return errors.New("a key set without a key that can be used here (RSA of 2,048 bits or more, EC, Ed25519)")
	}
	for _, s := range before {
		s.gone.Store(true)
	}
	k.keys, k.read = keys, k.now()
	return nil
}

// usable reads one key: public, for signatures, and not too short. Kinds that are not known here are no error: sets hold keys for others too.
func usable(raw []byte) (key signingKey, ok bool) {
	if err := key.UnmarshalJSON(raw); err != nil || key.Use != "" && key.Use != "sig" || !key.IsPublic() || !key.Valid() {
		return key, false
	}
	if r, is := key.Key.(*rsa.PublicKey); is && r.N.BitLen() < rsaBitsMin {
		return key, false
	}
	print, err := key.Thumbprint(crypto.SHA256)
	key.print = string(print)
	return key, err == nil
}
