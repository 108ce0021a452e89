// Package identity says who a client is: users and passwords with the home they are bound to, and what `up` makes for
// development.
package identity

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/argon2"
	"golang.org/x/time/rate"

	"hearthline/flow/secret"
	"hearthline/ingest/names"
)

// Credential is one entry of the credentials file: who may come in, and for which home it speaks.
type Credential struct {
	User    string   `yaml:"user" json:"user"`
	Home    string   `yaml:"home" json:"home"`
	Hash    string   `yaml:"hash" json:"hash"`                           // of the password: argon2id in PHC form, see [HashPassword]
	Devices []string `yaml:"devices,omitempty" json:"devices,omitempty"` // of which it may send telemetry; empty is all of the home
	Role    string   `yaml:"role,omitempty" json:"role,omitempty"`       // hub (default) or app
}

// Roles. A hub publishes its home's telemetry and hears its commands; an app hears telemetry and publishes to
// command topics, but sends no telemetry.
const (
	RoleHub = "hub"
	RoleApp = "app"
)

// credentialsMax bounds the file: a gateway holds its users in memory.
const credentialsMax = 5_000_000

// ReadCredentials reads a credentials file: a YAML list of [Credential], or JSON lines of it. Unknown keys, users
// given twice and hashes of another kind are errors.
func ReadCredentials(r io.Reader) ([]Credential, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	var all []Credential
	if t := bytes.TrimSpace(data); len(t) > 0 && t[0] == '{' {
		d := json.NewDecoder(bytes.NewReader(t))
		d.DisallowUnknownFields()
		for n := 1; ; n++ {
			var c Credential
			if err := d.Decode(&c); err == io.EOF {
				break
			} else if err != nil {
				return nil, fmt.Errorf("credentials: entry %d: %w", n, err)
			}
			all = append(all, c)
		}
	} else {
		d := yaml.NewDecoder(bytes.NewReader(data))
		d.KnownFields(true)
		if err := d.Decode(&all); err != nil && err != io.EOF {
			return nil, fmt.Errorf("credentials: %w", err)
		}
	}
	if len(all) > credentialsMax {
		return nil, fmt.Errorf("credentials: %d entries; at most %d", len(all), credentialsMax)
	}
	users := make(map[string]bool, len(all))
	for i, c := range all {
		if err := c.check(); err != nil {
			return nil, fmt.Errorf("credentials: entry %d (user %q): %w", i+1, c.User, err)
		}
		if users[c.User] {
			return nil, fmt.Errorf("credentials: entry %d: user %q is given twice", i+1, c.User)
		}
		users[c.User] = true
	}
	return all, nil
}

func (c *Credential) check() error {
	if c.User == "" || len(c.User) > names.BytesMax || strings.Contains(c.User, ":") {
		return fmt.Errorf("user must have 1 to %d bytes and no colon", names.BytesMax)
	}
	if why := names.Bad(c.Home); why != "" {
		return fmt.Errorf("home %q %s", c.Home, why)
	}
	for _, d := range c.Devices {
		if why := names.Bad(d); why != "" {
			return fmt.Errorf("device %q %s", d, why)
		}
	}
	if c.Role != "" && c.Role != RoleHub && c.Role != RoleApp {
		return fmt.Errorf("role %q; want %s or %s", c.Role, RoleHub, RoleApp)
	}
	_, err := parsePHC(c.Hash)
	return err
}

// phc is an argon2id hash in the form of the password hashing competition:
// $argon2id$v=19$m=19456,t=2,p=1$salt$hash, base64 without padding.
type phc struct {
	memory, time uint32 // KiB, passes
	threads      uint8
	salt, hash   []byte
}

// Limits of a hash: a file must not make one login cost minutes or gigabytes.
const (
	argonMemoryMax = 256 << 10 // KiB
	argonTimeMax   = 16
)

func parsePHC(s string) (phc, error) {
	var p phc
	var version int
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return p, errors.New("hash is not argon2id in PHC form ($argon2id$v=19$m=…,t=…,p=…$salt$hash)")
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

// Identity is who a connection or request speaks for. It outlives reloads of the file as long as the user does.
type Identity struct {
	Credential
	phc      phc
	Messages *rate.Limiter // shared by all connections of the user
	Bytes    *rate.Limiter
	Sessions atomic.Int64 // MQTT, open now
}

// Sends says whether it may send telemetry of a device.
func (id *Identity) Sends(device string) bool {
	return len(id.Devices) == 0 || slices.Contains(id.Devices, device)
}

// Door decides who comes in. Verifying a password costs 20 ms and 19 MiB on purpose, so: verified passwords are
// remembered (as a keyed MAC, with the hash they matched), few are verified at a time, and addresses that fail
// wait. Unknown users cost the same time as wrong passwords.
type Door struct {
	file     string
	limits   func() (messages, bytes *rate.Limiter)
	now      func() time.Time
	failure  func()        // called for each attempt that is refused
	key      []byte        // of the MACs; made anew at each start
	slots    chan struct{} // verifications at a time
	dummy    phc
	mu       sync.RWMutex
	Users    map[string]*Identity
	modified FileMark
	verified *recent[[32]byte, struct{}]
	failures *recent[string, *rate.Limiter]
}

// Limits of the door.
const (
	verifiedMax      = 100_000         // remembered passwords: 64 bytes each
	failuresMax      = 10_000          // remembered addresses
	verificationsMax = 2               // at a time; each takes 19 MiB
	failureBurst     = 10              // failed attempts an address has at once
	FailureEvery     = 2 * time.Second // and one more each
	passwordBytesMax = 1024
	verificationWait = 10 * time.Second // for a free slot
)

var (
	errCredentials = errors.New("unknown user or wrong password")
	ErrAttempts    = errors.New("too many failed attempts; wait")
	ErrBusy        = errors.New("too many logins at once; try again later")
)

func NewDoor(file string, limits func() (messages, bytes *rate.Limiter), failure func()) *Door {
	d := &Door{file: file, limits: limits, now: time.Now, failure: failure, key: make([]byte, 32), slots: make(chan struct{}, verificationsMax)}
	rand.Read(d.key)
	d.dummy, _ = parsePHC(HashPassword(rand.Text()))
	d.verified = newRecent[[32]byte, struct{}](verifiedMax)
	d.failures = newRecent[string, *rate.Limiter](failuresMax)
	return d
}

// Load reads the file if it has changed. It returns the identities that are no more, or not the same.
func (d *Door) Load() (gone []*Identity, err error) {
	mark, err := MarkOf(d.file)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	if mark == d.modified {
		return nil, nil
	}
	f, err := os.Open(d.file)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	defer f.Close()
	if err := secret.Private(d.file); err != nil { // who can write it lets himself in; who can read it may guess at leisure
		return nil, fmt.Errorf("credentials: %w", err)
	}
	all, err := ReadCredentials(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.file, err)
	}
	d.modified = mark
	users := make(map[string]*Identity, len(all))
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range all {
		if c.Role == "" {
			c.Role = RoleHub
		}
		old := d.Users[c.User]
		if old != nil && old.Home == c.Home && old.Hash == c.Hash && old.Role == c.Role && slices.Equal(old.Devices, c.Devices) {
			users[c.User] = old
			continue
		}
		id := &Identity{Credential: c}
		id.phc, _ = parsePHC(c.Hash) // checked by ReadCredentials
		id.Messages, id.Bytes = d.limits()
		users[c.User] = id
	}
	for user, old := range d.Users {
		if users[user] != old {
			gone = append(gone, old)
		}
	}
	d.Users = users
	return gone, nil
}

// Admit says who comes with these credentials, from this address (without its port).
func (d *Door) Admit(user, password, address string) (*Identity, error) {
	d.mu.RLock()
	id := d.Users[user]
	d.mu.RUnlock()
	p := &d.dummy
	if id != nil {
		p = &id.phc
	}
	mac := hmac.New(sha256.New, d.key)
	mac.Write([]byte(password))
	mac.Write(p.hash)
	mac.Write([]byte(user))
	var sum [32]byte
	mac.Sum(sum[:0])
	if _, ok := d.verified.get(sum); ok && id != nil {
		return id, nil
	}
	if d.blocked(address) {
		return nil, ErrAttempts
	}
	select {
	case d.slots <- struct{}{}:
	case <-time.After(verificationWait):
		return nil, ErrBusy
	}
	ok := len(password) <= passwordBytesMax && p.matches(password) && id != nil
	<-d.slots
	if !ok {
		d.failure()
		d.failed(address)
		return nil, errCredentials
	}
	d.verified.put(sum, struct{}{})
	return id, nil
}

func (d *Door) blocked(address string) bool {
	lim, ok := d.failures.get(address)
	return ok && lim.TokensAt(d.now()) < 1
}

func (d *Door) failed(address string) {
	lim, ok := d.failures.get(address)
	if !ok {
		lim = rate.NewLimiter(rate.Every(FailureEvery), failureBurst)
		d.failures.put(address, lim)
	}
	lim.AllowN(d.now(), 1)
}

// FileMark tells versions of a file apart.
type FileMark struct {
	modified time.Time
	size     int64
}

func MarkOf(path string) (FileMark, error) {
	st, err := os.Stat(path)
	if err != nil {
		return FileMark{}, err
	}
	return FileMark{modified: st.ModTime(), size: st.Size()}, nil
}

// recent is a map that forgets: it holds two generations of max/2 entries, and drops the older when the younger is
// full. Safe for concurrent use.
type recent[K comparable, V any] struct {
	mu         sync.Mutex
	max        int
	young, old map[K]V
}

func newRecent[K comparable, V any](max int) *recent[K, V] {
	return &recent[K, V]{max: max, young: make(map[K]V)}
}

func (r *recent[K, V]) get(k K) (V, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.young[k]
	if !ok {
		if v, ok = r.old[k]; ok {
			r.add(k, v)
		}
	}
	return v, ok
}

func (r *recent[K, V]) put(k K, v V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(k, v)
}

func (r *recent[K, V]) add(k K, v V) {
	if len(r.young) >= r.max/2 {
		r.old, r.young = r.young, make(map[K]V)
	}
	r.young[k] = v
}
