package embedded

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sourcegraph/conc"
)

// tarball is a package as npm packs it, with an engine of size random bytes.
func tarball(t *testing.T, size int) (file, engine []byte, p pack) {
	t.Helper()
	engine = make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range engine {
		engine[i] = byte(rng.Int())
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for name, body := range map[string][]byte{"package/package.json": []byte("{}"), "package/" + libraryFile: engine} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum512(b.Bytes())
	return b.Bytes(), engine, pack{"@chdb/lib-test", "sha512-" + base64.StdEncoding.EncodeToString(sum[:]), int64(b.Len())}
}

func fetchFrom(t *testing.T, handler http.Handler, p pack, cache string) (string, error) {
	t.Helper()
	server := httptest.NewServer(handler)
	defer server.Close()
	return fetch(context.Background(), cache, p, server.URL, slog.New(slog.DiscardHandler), nil)
}

func TestFetch(t *testing.T) {
	file, engine, p := tarball(t, 300_000)
	flipped := bytes.Clone(file)
	flipped[len(flipped)-1] ^= 1
	whole := func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", testTime, bytes.NewReader(file))
	}
	var asked atomic.Int64
	for _, c := range []struct {
		name   string
		handle http.HandlerFunc
		pack   pack
		fails  string // part of the error; "" is success
	}{
		{"whole", whole, p, ""},
		{"breaks off each time after 100 KB, and gives the rest when asked", breaking(file, true), p, ""},
		{"breaks off and starts from the beginning", breaking(file, false), p, ""},
		{"breaks off and gives no more", func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1) > 1 {
				http.Error(w, "", http.StatusServiceUnavailable)
				return
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(file)))
			_, _ = w.Write(file[:1000])
		}, p, "503"},
		{"another file", func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(flipped) }, p, "flate"},
		{"another checksum", whole, pack{p.name, "sha512-AAAA", p.size}, "want sha512-AAAA"},
		{"not found", http.NotFound, p, "404"},
		{"a page of a proxy", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>log in first</html>") }, p, "gzip"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cache := t.TempDir()
			path, err := fetchFrom(t, c.handle, c.pack, cache)
			if c.fails == "" {
				if err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, engine) {
					t.Errorf("%d bytes, %v; want the engine's %d", len(got), err, len(engine))
				}
			} else {
				if err == nil || !strings.Contains(err.Error(), c.fails) && c.fails != "flate" {
					t.Errorf("error %v; want one that says %q", err, c.fails)
				}
				if err != nil && !strings.Contains(err.Error(), "put a `clickhouse` binary on PATH") {
					t.Errorf("error %v does not say what to do", err)
				}
			}
			left, err := filepath.Glob(filepath.Join(cache, "*", libraryFile+"*"))
			if err != nil || len(left) > 1 || (c.fails != "") != (len(left) == 0) {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// breaking serves file with a connection that breaks after 100 KB.
func breaking(file []byte, ranges bool) http.HandlerFunc {
	const most = 100_000
	served := 0
	return func(w http.ResponseWriter, r *http.Request) {
		from := 0
		if v, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && ranges {
			from, _ = strconv.Atoi(strings.TrimSuffix(v, "-"))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(file)-1, len(file)))
			w.Header().Set("Content-Length", strconv.Itoa(len(file)-from))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Header().Set("Content-Length", strconv.Itoa(len(file)))
		}
		served += most
		to := from + most
		if !ranges {
			to = served // a little further each time
		}
		_, _ = w.Write(file[from:min(to, len(file))])
	}
}

// TestFetchOnce: processes that start together fetch once.
func TestFetchOnce(t *testing.T) {
	file, _, p := tarball(t, 10_000)
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if want := "/@chdb/lib-test/-/lib-test-" + Version + ".tgz"; r.URL.Path != want {
			t.Errorf("asked for %s; want %s", r.URL.Path, want)
		}
		_, _ = w.Write(file)
	}))
	defer server.Close()
	cache := t.TempDir()
	var wg conc.WaitGroup
	var mu sync.Mutex
	var last, total int64
	for range 4 {
		wg.Go(func() {
			_, err := fetch(context.Background(), cache, p, server.URL+"/", slog.New(slog.DiscardHandler), func(done, of int64) {
				mu.Lock()
				defer mu.Unlock()
				if done <= last {
					t.Errorf("progress went from %d to %d", last, done)
				}
				last, total = done, of
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if asked.Load() != 1 || last != total || total != p.size {
		t.Errorf("%d requests, progress %d of %d; want one, and all", asked.Load(), last, total)
	}
}

func TestFetchWithoutRegistry(t *testing.T) {
	_, _, p := tarball(t, 10)
	_, err := fetch(context.Background(), t.TempDir(), p, "http://"+freeAddr(t), slog.New(slog.DiscardHandler), nil)
	if err == nil || !strings.Contains(err.Error(), "HTTPS_PROXY") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("error %v; want one that says what to do", err)
	}
}

func TestRegistry(t *testing.T) {
	for _, c := range []struct{ name, env, npmrc, want, fails string }{
		{name: "npm's default", want: defaultRegistry},
		{name: "npmrc", npmrc: "fund=false\nregistry = https://npm.example/\n", want: "https://npm.example/"},
		{name: "quotes, comments, scope", npmrc: "; registry=https://no.example\n# registry=x\nregistry=\"https://a.example\"\n@chdb:registry='https://b.example/npm'\n", want: "https://b.example/npm"},
		{name: "a variable", npmrc: "registry=${MIRROR}/npm/", want: "http://mirror.example/npm/"},
		{name: "the environment goes first", env: "https://c.example/", npmrc: "registry=https://a.example", want: "https://c.example/"},
		{name: "no address", npmrc: "registry=mirror", fails: ".npmrc says the npm registry is \"mirror\""},
		{name: "no address, with a password", env: "file://me:hunter2@host/x", fails: "is \"file://hidden@host/x\""},
		{name: "no URL, with a password", env: "https://me:hunter2@ho st/\x7f", fails: "is \"…\""},
		{name: "no address in the environment", env: "file:///x", fails: "npm_config_registry says"},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := t.TempDir()
			t.Setenv("HOME", home)
			t.Setenv("npm_config_registry", c.env)
			t.Setenv("NPM_CONFIG_REGISTRY", "")
			t.Setenv("MIRROR", "http://mirror.example")
			if c.npmrc != "" {
				if err := os.WriteFile(filepath.Join(home, ".npmrc"), []byte(c.npmrc), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := registry()
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("error %v; want %q in it", err, c.fails)
				}
				return
			}
			if err != nil || got != c.want {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func FuzzNpmrc(f *testing.F) {
	f.Add("registry=https://a.example\n")
	f.Add("=\n;\n#\nregistry\nregistry=\"'${\n@chdb:registry=")
	f.Fuzz(func(t *testing.T, s string) {
		v, err := npmrcRegistry(strings.NewReader(s))
		if err == nil && strings.ContainsAny(v, "\n") {
			t.Errorf("%q holds a line's end", v)
		}
	})
}

// A mirror's address may hold a password; neither the log nor the error does.
func TestFetchKeepsThePasswordOfAMirror(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody answers there
	var log strings.Builder
	p := pack{name: "@chdb/none", integrity: "sha512-", size: 1}
	_, err = fetch(t.Context(), t.TempDir(), p, "http://me:hunter2@"+l.Addr().String()+"/npm/?token=hunter2", slog.New(slog.NewTextHandler(&log, nil)), nil)
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()) || strings.Contains(err.Error(), "hunter2") || strings.Contains(log.String(), "hunter2") {
		t.Errorf("error %v\nlog %s", err, log.String())
	}
}
