package identity

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"hearthline/flow/secret"
)

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
	dummy    passwordHash  // compared with where there is no such user
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
	d.dummy = dummyLike("")
	d.verified = newRecent[[32]byte, struct{}](verifiedMax)
	d.failures = newRecent[string, *rate.Limiter](failuresMax)
	return d
}

// Load reads the file if it has changed, and says whether it has. Identities that are no more, or not the same, are then
// [Identity.Gone].
func (d *Door) Load() (changed bool, err error) {
	mark, err := MarkOf(d.file)
	if err != nil {
		return false, fmt.Errorf("credentials: %w", err)
	}
	if mark == d.modified {
		return false, nil
	}
	f, err := os.Open(d.file)
	if err != nil {
		return false, fmt.Errorf("credentials: %w", err)
	}
	defer f.Close()
	if err := secret.Private(d.file); err != nil { // who can write it lets himself in; who can read it may guess at leisure
		return false, fmt.Errorf("credentials: %w", err)
	}
	all, err := ReadCredentials(f)
	if err != nil {
		return false, fmt.Errorf("%s: %w", d.file, err)
	}
	d.modified = mark
	d.take(all)
	return true, nil
}

// take puts entries in the place of those before. An identity whose entry has not changed stays the same.
func (d *Door) take(all []Credential) {
	users := make(map[string]*Identity, len(all))
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range all {
		c := &all[i]
		grants, _ := c.grants() // checked by ReadCredentials
		old := d.Users[c.User]
		if old != nil && old.hash == passwordHash(c.Hash) && slices.EqualFunc(old.Grants, grants, Grant.equal) {
			users[c.User] = old
			continue
		}
		id := &Identity{User: c.User, Subject: c.User, Grants: grants, hash: passwordHash(c.Hash)}
		id.Messages, id.Bytes = d.limits()
		users[c.User] = id
	}
	for user, old := range d.Users {
		if users[user] != old {
			old.revoke("these credentials have changed")
		}
	}
	d.Users = users
	if len(all) > 0 && passwordHash(all[0].Hash).isBcrypt() != d.dummy.isBcrypt() {
		d.dummy = dummyLike(passwordHash(all[0].Hash))
	}
}

// Admit says who comes with these credentials, from this address (without its port).
func (d *Door) Admit(user, password, address string) (*Identity, error) {
	d.mu.RLock()
	id, hash := d.Users[user], d.dummy
	d.mu.RUnlock()
	if id != nil {
		hash = id.hash
	}
	mac := hmac.New(sha256.New, d.key)
	mac.Write([]byte(password))
	mac.Write([]byte(hash))
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
	ok := len(password) <= passwordBytesMax && hash.matches(password) && id != nil
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
