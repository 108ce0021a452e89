package blobs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// Files being written stand in .partial/<session>/ until they are whole. A session is one open Directory of one
// process; it holds a lock on .partial/<session>.lock, which the system frees however the process ends. So a
// session whose lock can be taken is dead, and what it left is removed. The lock .partial/lock is held while sessions
// are made and removed: nobody takes one for dead that has not locked its file yet.
const (
	partialFolder = ".partial"
	lockSuffix    = ".lock"
	lockWaitMax   = 30 * time.Second // for others to make or clean their sessions
)

type partials struct {
	root   *os.Root
	folder string // inside root
	lock   *flock.Flock
}

// partials gives the session of d, making it when the first object is put: who only reads writes nothing.
func (d *Directory) partials() (*partials, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.partial != nil {
		return d.partial, nil
	}
	if err := d.root.MkdirAll(partialFolder, 0o755); err != nil {
		return nil, err
	}
	all := d.lockFile("")
	ctx, cancel := context.WithTimeout(context.Background(), lockWaitMax)
	defer cancel()
	if _, err := all.TryLockContext(ctx, 5*time.Millisecond); err != nil {
		return nil, fmt.Errorf("lock %s: %w", all.Path(), err)
	}
	defer all.Close()
	if err := d.removeDead(); err != nil {
		return nil, fmt.Errorf("remove what a crash left: %w", err)
	}
	session := rand.Text()
	p := &partials{root: d.root, folder: path.Join(partialFolder, session), lock: d.lockFile(session)}
	if ok, err := p.lock.TryLock(); err != nil || !ok {
		return nil, fmt.Errorf("lock %s: taken=%v: %w", p.lock.Path(), !ok, err)
	}
	if err := d.root.Mkdir(p.folder, 0o755); err != nil {
		return nil, errors.Join(err, p.lock.Close())
	}
	d.partial = p
	return p, nil
}

func (d *Directory) lockFile(session string) *flock.Flock {
	name := session + lockSuffix
	if session == "" {
		name = "lock"
	}
	return flock.New(filepath.Join(d.root.Name(), partialFolder, name))
}

// removeDead removes the sessions of processes that are no more. The caller holds the lock of all.
func (d *Directory) removeDead() error {
	entries, err := readFolder(d.root, partialFolder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		session, isLock := strings.CutSuffix(e.Name(), lockSuffix)
		if e.Name() == "lock" || isLock && hasEntry(entries, session) {
			continue // the latter is looked at by its folder
		}
		l := d.lockFile(session)
		ok, err := l.TryLock()
		if err == nil && ok {
			err = (&partials{root: d.root, folder: path.Join(partialFolder, session), lock: l}).close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// close removes the session with all that is in it.
func (p *partials) close() error {
	return errors.Join(
		p.root.RemoveAll(p.folder),
		ignoreMissing(p.root.Remove(p.folder+lockSuffix)),
		p.lock.Close(),
	)
}

func readFolder(root *os.Root, name string) ([]os.DirEntry, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	entries, err := f.ReadDir(-1)
	return entries, errors.Join(err, f.Close())
}

func hasEntry(entries []os.DirEntry, name string) bool {
	for _, e := range entries {
		if e.Name() == name {
			return true
		}
	}
	return false
}
