package embedded

import (
	"archive/tar"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"hearthline/flow/cachedir"

	"github.com/gofrs/flock"
	"github.com/klauspost/compress/gzip"
)

// pack is a package of the npm registry that holds the engine for one platform.
type pack struct {
	name      string // scoped name
	integrity string // of the tarball, as npm writes it: sha512- and base64
	size      int64  // of the tarball, bytes; for the display only
}

// Version of the engine: ClickHouse 26.7.
const Version = "26.7.3-stable.1"

// packs by GOOS/GOARCH. An entry is added only with a checksum taken from the registry.
var packs = map[string]pack{
	"linux/amd64": {
		name:      "@chdb/lib-linux-x64-gnu",
		integrity: "sha512-XP97mMqnc5tZpKQywR8N7cLTsHNiTmHr30pC5mzo3jWmukjKn2IBa60c2B/gWUNcuFjOMjWoorQICCqBVj5wpw==",
		size:      177817999,
	},
}

const (
	libraryFile  = "libchdb.so"
	libraryBytes = 4 << 30 // more than this is no engine
	fetchTries   = 3
	fetchStall   = time.Minute // without a byte
)

const withoutRegistry = "to go on without it: put a `clickhouse` binary on PATH, or set the address of a ClickHouse server; " +
	"if a proxy or a mirror is needed, set HTTPS_PROXY or npm_config_registry"

// Fetch returns the path of the engine's library in the cache directory ("" is [cachedir.Find]), and fetches it from the
// npm registry when it is not there: 178 MB, of which a file of 566 MB is unpacked. What arrives is checked
// against the pinned checksum before it gets its name, so a file under that name is whole. Processes that fetch at
// once wait for the first.
func Fetch(ctx context.Context, cache string, log *slog.Logger, progress func(done, total int64)) (string, error) {
	p, ok := packs[runtime.GOOS+"/"+runtime.GOARCH]
	if !ok {
		return "", fmt.Errorf("clickhouse: there is no engine library for %s/%s; put a `clickhouse` binary on PATH, or set the address of a ClickHouse server", runtime.GOOS, runtime.GOARCH)
	}
	registry, err := registry()
	if err != nil {
		return "", err
	}
	return fetch(ctx, cache, p, registry, log, progress)
}

func fetch(ctx context.Context, cache string, p pack, registry string, log *slog.Logger, progress func(done, total int64)) (string, error) {
	if cache == "" {
		dir, err := cachedir.Find()
		if err != nil {
			return "", err
		}
		cache = dir
	}
	dir := filepath.Join(cache, "chdb-"+Version)
	path := filepath.Join(dir, libraryFile)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec G301 -- the cache of a public library, which users may share
		return "", fmt.Errorf("clickhouse: cache: %w; set HEARTHLINE_CACHE to a directory that can be written", err)
	}
	lock := flock.New(filepath.Join(dir, "lock"))
	if ok, err := lock.TryLockContext(ctx, pollStep); !ok {
		return "", fmt.Errorf("clickhouse: cache %s: %w", dir, err)
	}
	defer lock.Close()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	url := p.url(registry)
	log.Info("clickhouse: fetching the engine", "from", withoutPassword(url), "bytes", p.size, "to", path)
	d := download{url: url, pack: p, progress: progress}
	if err := d.to(ctx, path); err != nil {
		return "", fmt.Errorf("clickhouse: fetch the engine from %s: %w; %s", withoutPassword(url), err, withoutRegistry)
	}
	return path, nil
}

// url is where npm registries keep a package's tarball.
func (p pack) url(registry string) string {
	_, base, _ := strings.Cut(p.name, "/")
	return strings.TrimSuffix(registry, "/") + "/" + p.name + "/-/" + base + "-" + Version + ".tgz"
}

// download fetches a tarball and unpacks the library while it arrives.
type download struct {
	url      string
	pack     pack
	progress func(done, total int64)
}

// to leaves the library at path, whole and checked, or nothing.
func (d *download) to(ctx context.Context, path string) error {
	// One name, under the lock: what a killed process left is written over.
	tmp, err := os.OpenFile(path+".part", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755) // #nosec G302 G304 -- a public library in the cache, which users may share
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if err := d.unpack(ctx, tmp); err != nil {
		return err
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// unpack writes the library's file to w and checks the whole tarball.
func (d *download) unpack(ctx context.Context, w io.Writer) error {
	body := &resuming{ctx: ctx, url: d.url, progress: d.progress, total: d.pack.size}
	defer body.Close()
	sum := sha512.New()
	all := io.TeeReader(body, sum)
	unzipped, err := gzip.NewReader(all)
	if err != nil {
		return body.or(err)
	}
	found := false
	for files := tar.NewReader(unzipped); ; {
		h, err := files.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return body.or(fmt.Errorf("unpack: %w", err))
		}
		if filepath.Base(h.Name) != libraryFile {
			continue
		}
		if h.Size > libraryBytes {
			return fmt.Errorf("unpack: %s has %d bytes; the most taken is %d", h.Name, h.Size, int64(libraryBytes))
		}
		if _, err := io.Copy(w, files); err != nil { // #nosec G110 -- its size has just been limited
			return body.or(fmt.Errorf("unpack: %w", err))
		}
		found = true
	}
	// What stands behind the archive's end belongs to the checksum too.
	if _, err := io.Copy(io.Discard, all); err != nil {
		return body.or(err)
	}
	if got := "sha512-" + base64.StdEncoding.EncodeToString(sum.Sum(nil)); got != d.pack.integrity {
		return fmt.Errorf("checksum is %s; want %s: the file was changed or damaged on its way", got, d.pack.integrity)
	}
	if !found {
		return fmt.Errorf("the package holds no %s", libraryFile)
	}
	return nil
}

// resuming reads a URL to its end. When the connection breaks it asks for the rest, fetchTries times in a row without a
// byte; a server that cannot give a part gives it all, and what was read before is skipped.
type resuming struct {
	ctx      context.Context
	url      string
	progress func(done, total int64)
	total    int64

	body   io.ReadCloser
	cancel context.CancelFunc
	stall  *time.Timer
	done   int64
	tries  int
	err    error
}

func (r *resuming) Read(p []byte) (int, error) {
	for {
		if r.body == nil {
			if err := r.open(); err != nil {
				r.err = err
				return 0, err
			}
		}
		r.stall.Reset(fetchStall)
		n, err := r.body.Read(p)
		if n > 0 {
			r.done, r.tries = r.done+int64(n), 0
			if r.progress != nil {
				r.progress(r.done, max(r.total, r.done))
			}
		}
		if err == nil || err == io.EOF {
			return n, err
		}
		r.Close()
		if r.tries++; r.tries >= fetchTries || r.ctx.Err() != nil {
			r.err = fmt.Errorf("after %d bytes: %w", r.done, errors.Join(r.ctx.Err(), err))
			return n, r.err
		}
		if n > 0 {
			return n, nil
		}
	}
}

// open asks for what has not been read yet.
func (r *resuming) open() error {
	ctx, cancel := context.WithCancel(r.ctx)
	r.cancel = cancel
	r.stall = time.AfterFunc(fetchStall, cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return err
	}
	if r.done > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", r.done))
	}
	resp, err := http.DefaultClient.Do(req)
	if ue := (*url.Error)(nil); errors.As(err, &ue) {
		return ue.Err // without the address, which may hold a password; fetch says it
	}
	if err != nil {
		return err
	}
	r.body = resp.Body
	switch {
	case resp.StatusCode == http.StatusPartialContent && r.done > 0:
		return nil
	case resp.StatusCode == http.StatusOK:
		_, err := io.CopyN(io.Discard, r.body, r.done)
		return err
	}
	return fmt.Errorf("the registry answers %s", resp.Status)
}

// or is the error of the connection where there was one: it explains what the unpacking stumbled over.
func (r *resuming) or(err error) error {
	if r.err != nil {
		return r.err
	}
	return err
}

func (r *resuming) Close() error {
	if r.body != nil {
		r.body.Close()
		r.body = nil
	}
	if r.cancel != nil {
		r.stall.Stop()
		r.cancel()
	}
	return nil
}
