package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
)

// keyHashPrefix begins the hash of an API key in the credentials file.
const keyHashPrefix = "sha256:"

// keyBytesMin bounds how short a key may be that is looked up at all.
const keyBytesMin = 16

// NewKey makes an API key: 260 random bits, which nobody guesses.
func NewKey() string { return "hl_" + rand.Text() + rand.Text() }

// HashKey gives what the credentials file holds of an API key. SHA-256 is enough where there is nothing to guess, and costs a request nothing.
func HashKey(key string) string {
	sum := sha256.Sum256([]byte(key))
	return keyHashPrefix + hex.EncodeToString(sum[:])
}

func parseKeyHash(s string) (sum [32]byte, err error) {
	text, ok := strings.CutPrefix(s, keyHashPrefix)
	b, err := hex.DecodeString(text)
	if !ok || err != nil || len(b) != len(sum) {
		return sum, errors.New("an API key's hash is sha256: and 64 hexadecimal digits")
	}
	return [32]byte(b), nil
}

// admitKey says who comes with an API key. It is found by its hash: how long that takes says nothing of the key.
func (d *Door) admitKey(key string) (*Identity, error) {
	d.mu.RLock()
	id := d.byKey[sha256.Sum256([]byte(key))]
	d.mu.RUnlock()
	if id == nil || len(key) < keyBytesMin {
		return nil, errKey
	}
	return id, nil
}

var errKey = errors.New("unknown API key")
