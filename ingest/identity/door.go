package identity

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc"
	"golang.org/x/time/rate"

	"hearthline/flow/secret"
)

// Settings are what a [Door] goes by.
type Settings struct {
	Credentials string             // file of [Credential]
	Clients     ClientCertificates // of devices
	Issuers     []Issuer           // of tokens
	Revocations string             // file of [Revocation]; "" for none
	Limits      func(Limits) (messages, bytes *rate.Limiter)
	Failure     func()           // called for each attempt that is refused
	Now         func() time.Time // the system's clock, but in tests
}

// Door decides who comes in. Verifying a password costs 20 ms and 19 MiB on purpose, so: verified passwords are
// remembered (as a keyed MAC, with the hash they matched), few are verified at a time, and addresses that fail
// wait. Unknown users cost the same time as wrong passwords.
type Door struct {
	settings    Settings
	now         func() time.Time
	key         []byte        // of the MACs; made anew at each start
	slots       chan struct{} // verifications at a time
	issuers     []*issued
	authorities authorities
	revoked     atomic.Pointer[revocations]
	verified    *recent[[32]byte, struct{}]
	failures    *recent[string, *rate.Limiter]
	guests      *recent[string, *Identity] // whose limits are shared by those who come as the same subject, and are in no file
	modified    FileMark                   // by Load
	revokedMark FileMark                   // by Load

	mu            sync.RWMutex
	dummy         passwordHash // compared with where there is no such user
	Users         map[string]*Identity
	byCertificate map[string]*Identity
	byToken       map[string]*Identity
	byKey         map[[32]byte]*Identity
}

// Limits of the door.
const (
	verifiedMax      = 100_000         // remembered passwords: 64 bytes each
	failuresMax      = 10_000          // remembered addresses
	guestsMax        = 200_000         // remembered subjects: some 500 bytes each
	verificationsMax = 2               // at a time; each takes 19 MiB
	failureBurst     = 10              // failed attempts an address has at once
	FailureEvery     = 2 * time.Second // and one more each
	passwordBytesMax = 1024
	verificationWait = 10 * time.Second // for a free slot
)

var (
	errCredentials = errors.New("unknown user or wrong password")
	errNothing     = errors.New("a user and a password, a token, or a client certificate is needed")
	ErrAttempts    = errors.New("too many failed attempts; wait")
	ErrBusy        = errors.New("too many logins at once; try again later")
)

// NewDoor makes a door. It lets nobody in before Load.
func NewDoor(s Settings) *Door {
	if s.Now == nil {
		s.Now = time.Now
	}
	d := &Door{settings: s, now: s.Now, key: make([]byte, 32), slots: make(chan struct{}, verificationsMax)}
	rand.Read(d.key)
	d.dummy = dummyLike("")
	d.verified = newRecent[[32]byte, struct{}](verifiedMax)
	d.failures = newRecent[string, *rate.Limiter](failuresMax)
	d.guests = newRecent[string, *Identity](guestsMax)
	d.authorities.ClientCertificates, d.authorities.now = s.Clients, s.Now
	for _, i := range s.Issuers {
		i = i.withDefaults()
		d.issuers = append(d.issuers, &issued{Issuer: i, keySet: &keySet{from: i, now: s.Now}})
	}
	return d
}

// ClientCAs are the authorities of clients' certificates, nil where none are taken. The pool is another one after Load has read a
// new file.
func (d *Door) ClientCAs() *x509.CertPool { return d.authorities.pool.Load() }

// Load reads the files that have changed. What cannot be read leaves what was read before in force. Identities that are no
// more, or not the same, are then [Identity.Gone].
func (d *Door) Load() error {
	errs := []error{d.loadCredentials(), d.authorities.load()}
	if d.settings.Revocations != "" {
		errs = append(errs, d.loadRevocations())
	}
	for _, i := range d.issuers {
		if err := i.keySet.load(); err != nil {
			errs = append(errs, fmt.Errorf("keys of issuer %s: %w", i.Issuer.Issuer, err))
		}
	}
	return errors.Join(errs...)
}

// Watch reads the keys of issuers from their addresses, again and again, until ctx ends. failed is told what goes wrong.
func (d *Door) Watch(ctx context.Context, failed func(error)) {
	var all conc.WaitGroup
	defer all.Wait()
	for _, i := range d.issuers {
		if i.keySet.isFile() {
			continue
		}
		all.Go(func() {
			for ctx.Err() == nil {
				pause := i.Refresh
				if err := i.keySet.refresh(ctx, 0); err != nil && ctx.Err() == nil {
					failed(fmt.Errorf("keys of issuer %s: %w", i.Issuer.Issuer, err))
					pause = min(pause, unknownKeyWait)
				}
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
}

func (d *Door) loadRevocations() error {
	mark, err := MarkOf(d.settings.Revocations)
	if err == nil && mark == d.revokedMark {
		return nil
	}
	var all *revocations
	if err == nil {
		all, err = readRevocations(d.settings.Revocations)
	}
	if err != nil {
		return fmt.Errorf("revocations: %w", err)
	}
	d.revoked.Store(all)
	d.revokedMark = mark
	return nil
}

func (d *Door) loadCredentials() error {
	file := d.settings.Credentials
	mark, err := MarkOf(file)
	if err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	if mark == d.modified {
		return nil
	}
	f, err := os.Open(file) // #nosec G304 -- the operator names the file
	if err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	defer f.Close()
	if err := secret.Private(file); err != nil { // who can write it lets himself in; who can read it may guess at leisure
		return fmt.Errorf("credentials: %w", err)
	}
	all, err := ReadCredentials(f)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	d.take(all)
	d.modified = mark
	return nil
}

// take puts entries in the place of those before. An identity whose entry has not changed stays the same.
func (d *Door) take(all []Credential) {
	users, byCertificate, byToken := make(map[string]*Identity, len(all)), make(map[string]*Identity), make(map[string]*Identity)
	byKey := make(map[[32]byte]*Identity)
	d.mu.RLock()
	before, dummy := d.Users, d.dummy
	d.mu.RUnlock()
	for i := range all {
		c := &all[i]
		id := d.identityOf(c, before[c.User])
		users[c.User] = id
		if c.Certificate != "" {
			byCertificate[c.Certificate] = id
		}
		if c.Token != "" {
			byToken[c.Token] = id
		}
		for _, k := range c.Keys {
			sum, _ := parseKeyHash(k) // checked by ReadCredentials
			byKey[sum] = id
		}
		if h := id.entry.hash; i == 0 && h != "" && h.isBcrypt() != dummy.isBcrypt() {
			dummy = dummyLike(h)
		}
	}
	for user, old := range before {
		switch users[user] {
		case old:
		case nil:
			old.removed.Store(true)
			old.revoke("these credentials are no more")
		default:
			old.next.Store(users[user])
			old.revoke("these credentials have changed")
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Users, d.byCertificate, d.byToken, d.byKey, d.dummy = users, byCertificate, byToken, byKey, dummy
}

// identityOf gives the identity of an entry: that which it had, unless the entry is another.
func (d *Door) identityOf(c *Credential, old *Identity) *Identity {
	grants, _ := c.grants() // checked by ReadCredentials
	e := &entry{hash: passwordHash(c.Hash), keys: c.Keys, certificate: c.Certificate, token: c.Token, limits: c.Limits}
	if old != nil && old.entry.equal(e) && slices.EqualFunc(old.Grants, grants, Grant.equal) {
		return old
	}
	id := &Identity{User: c.User, Subject: c.User, Grants: grants, SessionsMax: c.Limits.Connections, Sessions: new(atomic.Int64), entry: e}
	id.Messages, id.Bytes = d.settings.Limits(c.Limits)
	return id
}

// guest gives an identity that no file knows. Its limits are shared by all who come as the same subject.
func (d *Door) guest(subject, user string, grants []Grant) *Identity {
	shared, ok := d.guests.get(subject)
	if !ok {
		shared = &Identity{Sessions: new(atomic.Int64)}
		shared.Messages, shared.Bytes = d.settings.Limits(Limits{})
		d.guests.put(subject, shared)
	}
	return &Identity{User: user, Subject: subject, Grants: grants, Messages: shared.Messages, Bytes: shared.Bytes, Sessions: shared.Sessions}
}

// Proof is what a client shows of itself. Where it gives a password, that counts, then a bearer's secret, then its certificate.
type Proof struct {
	User     string
	Password string                // or a token in its place
	Bearer   string                // a token or an API key
	Chains   [][]*x509.Certificate // of its certificate, as the handshake has verified them
	Address  string                // it comes from, without the port
}

// Admit says who comes with a proof. ErrAttempts and ErrBusy say that it is not known: come again later.
func (d *Door) Admit(ctx context.Context, p Proof) (id *Identity, err error) {
	switch {
	case p.Password != "" && isToken(p.Password) && len(d.issuers) > 0:
		id, err = d.admitToken(ctx, p.Password, p.User)
	case p.Password != "":
		return d.admitPassword(ctx, p)
	case isToken(p.Bearer) && len(d.issuers) > 0:
		id, err = d.admitToken(ctx, p.Bearer, "")
	case p.Bearer != "":
		id, err = d.admitKey(p.Bearer)
	case len(p.Chains) > 0:
		id, err = d.admitCertificate(p.Chains, p.User)
	default:
		err = errNothing
	}
	switch {
	case errors.Is(err, errKeys):
		return nil, fmt.Errorf("%w: %w", ErrBusy, errKeys)
	case err == nil:
		return id, nil
	case d.blocked(p.Address):
		return nil, ErrAttempts
	}
	d.failed(p.Address)
	return nil, err
}

func (d *Door) admitPassword(ctx context.Context, p Proof) (*Identity, error) {
	d.mu.RLock()
	id, hash := d.Users[p.User], d.dummy
	d.mu.RUnlock()
	if id != nil && id.entry.hash == "" {
		id = nil
	}
	if id != nil {
		hash = id.entry.hash
	}
	mac := hmac.New(sha256.New, d.key)
	mac.Write([]byte(p.Password))
	mac.Write([]byte(hash))
	mac.Write([]byte(p.User))
	var sum [32]byte
	mac.Sum(sum[:0])
	if _, ok := d.verified.get(sum); ok && id != nil {
		return id, nil
	}
	if d.blocked(p.Address) {
		return nil, ErrAttempts
	}
	wait := time.NewTimer(verificationWait)
	defer wait.Stop()
	select {
	case d.slots <- struct{}{}:
	case <-wait.C:
		return nil, ErrBusy
	case <-ctx.Done():
		return nil, ErrBusy
	}
	ok := len(p.Password) <= passwordBytesMax && hash.matches(p.Password) && id != nil
	<-d.slots
	if !ok {
		d.failed(p.Address)
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
	d.settings.Failure()
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
