package identity

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// passwordHash is a password's hash as text: argon2id in PHC form, or bcrypt ($2a$, $2b$, and $2y$ of htpasswd -B).
type passwordHash string

// Limits of a hash: a file must not make one login cost minutes or gigabytes.
const (
	argonMemoryMax = 256 << 10 // KiB
	argonTimeMax   = 16
	bcryptCostMax  = 14 // about a second
	bcryptBytesMax = 72 // of a password: bcrypt does not see what is beyond
)

func (h passwordHash) isBcrypt() bool { return strings.HasPrefix(string(h), "$2") }

func (h passwordHash) check() error {
	if !h.isBcrypt() {
		_, err := parsePHC(string(h))
		return err
	}
	cost, err := bcrypt.Cost([]byte(h))
	if err != nil || len(h) != 60 {
		return errors.New("hash is not a whole bcrypt hash ($2a$, $2b$ or $2y$, 60 characters)")
	}
	if cost > bcryptCostMax {
		return fmt.Errorf("hash: a bcrypt cost of %d; at most %d", cost, bcryptCostMax)
	}
	return nil
}

// matches takes as long as the hash demands. The hash has been checked.
func (h passwordHash) matches(password string) bool {
	if h.isBcrypt() {
		err := bcrypt.CompareHashAndPassword([]byte(h), []byte(password[:min(len(password), bcryptBytesMax)]))
		return err == nil && len(password) <= bcryptBytesMax
	}
	p, err := parsePHC(string(h))
	return err == nil && p.matches(password)
}

// dummyLike gives the hash of a password that nobody knows, of the kind of h: what an unknown user's password is compared with, so that
// the answer takes as long as a known one's.
func dummyLike(h passwordHash) passwordHash {
	if h.isBcrypt() {
		if cost, err := bcrypt.Cost([]byte(h)); err == nil {
			if b, err := bcrypt.GenerateFromPassword([]byte(rand.Text()), cost); err == nil {
				return passwordHash(b)
			}
		}
	}
	return passwordHash(HashPassword(rand.Text()))
}

// phc is an argon2id hash in the form of the password hashing competition:
// $argon2id$v=19$m=19456,t=2,p=1$salt$hash, base64 without padding.
type phc struct {
	memory, time uint32 // KiB, passes
	threads      uint8
	salt, hash   []byte
}

func parsePHC(s string) (phc, error) {
	var p phc
	var version int
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return p, errors.New("hash is neither argon2id in PHC form ($argon2id$v=19$m=…,t=…,p=…$salt$hash) nor bcrypt")
	}
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return p, fmt.Errorf("hash: argon2 version %q; want v=%d", parts[2], argon2.Version)
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &p.memory, &p.time, &p.threads); err != nil {
		return p, fmt.Errorf("hash: parameters %q: %w", parts[3], err)
	}
	if p.time < 1 || p.time > argonTimeMax || p.threads < 1 || p.memory < 8*uint32(p.threads) || p.memory > argonMemoryMax {
		return p, fmt.Errorf("hash: parameters %q out of range (m up to %d, t up to %d)", parts[3], argonMemoryMax, argonTimeMax)
	}
	var err error
	if p.salt, err = base64.RawStdEncoding.DecodeString(parts[4]); err != nil || len(p.salt) < 8 {
		return p, errors.New("hash: salt is not base64 of 8 bytes or more")
	}
	if p.hash, err = base64.RawStdEncoding.DecodeString(parts[5]); err != nil || len(p.hash) < 16 || len(p.hash) > 64 {
		return p, errors.New("hash: not base64 of 16 to 64 bytes")
	}
	return p, nil
}

func (p *phc) matches(password string) bool {
	got := argon2.IDKey([]byte(password), p.salt, p.time, p.memory, p.threads, uint32(len(p.hash)))
	return subtle.ConstantTimeCompare(got, p.hash) == 1
}

// HashPassword hashes with argon2id at OWASP's second recommendation (19 MiB, 2 passes, 1 thread): about 20 ms.
func HashPassword(password string) string { return hashPassword(password, 19456, 2) }

func hashPassword(password string, memoryKiB, passes uint32) string {
	salt := make([]byte, 16)
	rand.Read(salt)
	hash := argon2.IDKey([]byte(password), salt, passes, memoryKiB, 1, 32)
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=1$%s$%s", argon2.Version, memoryKiB, passes, b64(salt), b64(hash))
}
