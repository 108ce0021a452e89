package blobs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
)

// Directory is a [Store] in a directory: an object is a file, a name its path. Symbolic links in it are followed
// where they stay inside it and refused where they lead out.
type Directory struct {
	// Path of the directory. It is made if it is not there.
	Path string `yaml:"path"`
	// NoSync leaves it to the operating system when bytes reach the disk. Puts are faster and still atomic for
	// readers, but after a loss of power objects may be missing or empty. For tests and data that can be made again.
	NoSync bool `yaml:"no_sync"`

	root *os.Root

	mu      sync.Mutex
	partial *partials           // made by the first Put
	durable map[string]struct{} // folders whose own entries are known to be on disk
}

// durableMax bounds Directory.durable. When it is full it is emptied: folders are then synced once more.
const durableMax = 4096

// Dir opens the directory as a store, with durable puts. It is made if it is not there.
func Dir(path string) (Store, error) {
	d := &Directory{Path: path}
	return d, d.Open()
}

// Open makes d ready. It is called once, before anything else.
func (d *Directory) Open() error {
	if err := os.MkdirAll(d.Path, 0o755); err != nil { // #nosec G301 -- who may come here is decided by the folder around it: Parquet files are for other users, too
		return d.fail("open", "", err)
	}
	root, err := os.OpenRoot(d.Path)
	if err != nil {
		return d.fail("open", "", err)
	}
	d.root, d.durable = root, make(map[string]struct{})
	return nil
}

// Close gives back file handles. A process that ends without it leaves nothing that the next one does not clean.
func (d *Directory) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	if d.partial != nil {
		err = d.partial.close()
		d.partial = nil
	}
	return errors.Join(err, d.root.Close())
}

func (d *Directory) Put(ctx context.Context, name string, r io.Reader) error {
	if err := CheckName(name); err != nil {
		return d.fail("put", name, err)
	}
	temp, err := d.write(ctx, r)
	if err != nil {
		return d.fail("put", name, err)
	}
	if err := d.place(temp, name); err != nil {
		return d.fail("put", name, errors.Join(err, ignoreMissing(d.root.Remove(temp))))
	}
	return nil
}

// write puts what r gives into a new partial file, on disk, and gives its path. On an error nothing is left.
func (d *Directory) write(ctx context.Context, r io.Reader) (string, error) {
	p, err := d.partials()
	if err != nil {
		return "", err
	}
	temp := path.Join(p.folder, rand.Text())
	f, err := d.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, reader{ctx, r})
	if err == nil && !d.NoSync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return "", errors.Join(err, d.root.Remove(temp))
	}
	return temp, nil
}

// place moves a partial file to its name and makes that durable. Once it is in place, the caller's context does
// not matter any more: the rest takes one sync.
func (d *Directory) place(temp, name string) error {
	folder := path.Dir(name)
	if err := d.makeFolder(folder); err != nil {
		return err
	}
	if err := d.root.Rename(temp, name); err != nil {
		return err
	}
	return d.syncFolder(folder)
}

// makeFolder makes a folder, with those above it, and sees to it that all are on disk, even one that another
// process has just made and not yet synced.
func (d *Directory) makeFolder(folder string) error {
	if folder == "." {
		return nil
	}
	_, err := d.root.Stat(folder)
	d.mu.Lock()
	_, known := d.durable[folder]
	d.mu.Unlock()
	if err == nil && known {
		return nil
	}
	if err := d.root.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for f := folder; f != "."; f = path.Dir(f) {
		if err := d.syncFolder(path.Dir(f)); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.durable) >= durableMax {
		clear(d.durable)
	}
	d.durable[folder] = struct{}{}
	return nil
}

func (d *Directory) syncFolder(folder string) error {
	if d.NoSync {
		return nil
	}
	f, err := d.root.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *Directory) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := errors.Join(ctx.Err(), CheckName(name)); err != nil {
		return nil, d.fail("get", name, err)
	}
	f, err := d.root.Open(name)
	if err != nil {
		if under(err) { // "a/b" where a is an object
			err = notExist("open", name)
		}
		return nil, d.fail("get", name, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = notExist("open", name)
	}
	if err != nil {
		return nil, d.fail("get", name, errors.Join(err, f.Close()))
	}
	return f, nil
}

func (d *Directory) List(ctx context.Context, prefix string) ([]Info, error) {
	if err := CheckPrefix(prefix); err != nil {
		return nil, d.fail("list", prefix, err)
	}
	start := "."
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		start = prefix[:i]
	}
	var list []Info
	err := fs.WalkDir(d.root.FS(), start, func(name string, e fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && (errors.Is(err, fs.ErrNotExist) || under(err)):
			return nil // deleted while we walk, or nothing under this prefix
		case err != nil:
			return err
		case e.IsDir():
			apart := name != start && !strings.HasPrefix(name+"/", prefix) && !strings.HasPrefix(prefix, name+"/")
			if apart || name != "." && strings.HasPrefix(e.Name(), ".") {
				return fs.SkipDir
			}
			return nil
		case !e.Type().IsRegular() || !strings.HasPrefix(name, prefix) || CheckName(name) != nil:
			return nil
		}
		info, err := e.Info()
		if err == nil {
			list = append(list, Info{Name: name, Size: info.Size()})
		}
		return ignoreMissing(err)
	})
	if err != nil {
		return nil, d.fail("list", prefix, err)
	}
	// The walk's order is that of folders: "a/b" before "a-b".
	return inOrder(list), nil
}

// Delete leaves the folder of the object, even if nothing is in it any more: a Put may be about to use it.
func (d *Directory) Delete(ctx context.Context, name string) error {
	if err := errors.Join(ctx.Err(), CheckName(name)); err != nil {
		return d.fail("delete", name, err)
	}
	// Root.Remove would remove an empty folder too; a folder is no object.
	info, err := d.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || under(err) || err == nil && info.IsDir() {
		return nil
	}
	if err == nil {
		err = ignoreMissing(d.root.Remove(name))
	}
	if err == nil {
		err = d.syncFolder(path.Dir(name))
	}
	if err != nil {
		return d.fail("delete", name, err)
	}
	return nil
}

// fail wraps an error with what was done, and says what to do about it where that is known.
func (d *Directory) fail(op, name string, err error) error {
	if name != "" {
		name = fmt.Sprintf(" %q", name)
	}
	return fmt.Errorf("%s%s in %s: %w%s", op, name, d.Path, err, hint(err))
}

// reader ends when ctx does.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
