// Package s3test runs a real S3 server for tests: versitygw (Apache-2.0), over a folder, on loopback. Between a test
// and the server a [Proxy] can stand that breaks what passes.
package s3test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"hearthline/blobs"
)

// Version of the server. It is built from its module, whose checksum Go's checksum database knows.
const Version = "v1.8.0"

const (
	module    = "github.com/versity/versitygw/cmd/versitygw"
	accessKey = "hearthline-test"
	secretKey = "a-secret-that-no-log-may-hold"
	buildMax  = 8 * time.Minute
	readyMax  = 30 * time.Second
)

// SecretKey is the secret of every server, for tests that look for it where it must not be.
const SecretKey = secretKey

// Server is a running S3 server, empty at its start. It is ended with the test.
type Server struct {
	URL  string // http://127.0.0.1:port
	Root string // the folder it keeps: a folder a bucket, a file an object

	tb      testing.TB
	keys    string // folder with the files of the keys
	program string
	cmd     *exec.Cmd
	out     *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// Start starts a server. Where there is none to be had the test is not run, and says so; under CI it fails.
func Start(tb testing.TB) *Server {
	tb.Helper()
	return StartIn(tb, tb.TempDir())
}

// StartIn starts a server over a folder: one on a disk of the test's choice.
func StartIn(tb testing.TB, root string) *Server {
	tb.Helper()
	s := &Server{tb: tb, Root: root, keys: tb.TempDir(), program: Program(tb)}
	for name, key := range map[string]string{"access": accessKey, "secret": secretKey} {
		if err := os.WriteFile(filepath.Join(s.keys, name), []byte(key+"\n"), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	s.URL = "http://" + freeAddr(tb)
	s.Run()
	tb.Cleanup(s.Kill)
	return s
}

// Program is the path of the server's binary, which is built into the user's cache when it is not there.
func Program(tb testing.TB) string {
	tb.Helper()
	program, err := built()
	if err != nil && os.Getenv("CI") == "" {
		tb.Skipf("NOT TESTED: there is no S3 server here: %v", err)
	}
	if err != nil {
		tb.Fatalf("there is no S3 server here: %v", err)
	}
	return program
}

// built builds the server once. Test binaries that want it at the same time wait for the first.
var built = sync.OnceValues(func() (string, error) {
	cache := os.Getenv("HEARTHLINE_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("no cache directory: %w; set HEARTHLINE_CACHE", err)
		}
		cache = filepath.Join(dir, "hearthline")
	}
	dir := filepath.Join(cache, "versitygw-"+Version)
	program := filepath.Join(dir, "versitygw")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), buildMax)
	defer cancel()
	lock := flock.New(filepath.Join(dir, "lock"))
	if _, err := lock.TryLockContext(ctx, 100*time.Millisecond); err != nil {
		return "", fmt.Errorf("wait for another process that builds it: %w", err)
	}
	defer lock.Close()
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	temp, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	build := exec.CommandContext(ctx, "go", "install", "-trimpath", module+"@"+Version)
	build.Dir = temp // outside of this module
	build.Env = append(os.Environ(), "GOBIN="+temp, "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go install %s@%s: %w\n%s", module, Version, err, out)
	}
	return program, os.Rename(filepath.Join(temp, "versitygw"), program)
})

// Run starts the server again after a Kill.
func (s *Server) Run() {
	s.tb.Helper()
	s.out = &lockedBuffer{}
	s.cmd = exec.Command(s.program, "--port", strings.TrimPrefix(s.URL, "http://"), "--health", "/health", "--keep-alive", "--quiet", "posix", s.Root)
	s.cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+accessKey, "ROOT_SECRET_KEY="+secretKey)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // nothing is left of a test that dies
	if err := s.cmd.Start(); err != nil {
		s.tb.Fatalf("start the S3 server: %v", err)
	}
	deadline := time.Now().Add(readyMax)
	for {
		res, err := http.Get(s.URL + "/health")
		if err == nil {
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			s.Kill()
			s.tb.Fatalf("the S3 server does not answer: %v\n%s", err, s.out.b.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Kill ends the server with -9. What it had acknowledged is in Root.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait() // "killed" is what it says
	s.cmd = nil
}

// Settings reach the server at url, its own or that of a Proxy.
func (s *Server) Settings(url string) blobs.S3 {
	return blobs.S3{
		Endpoint: url, Region: "us-east-1",
		AccessKeyFile: filepath.Join(s.keys, "access"), SecretKeyFile: filepath.Join(s.keys, "secret"),
	}
}

// Client speaks to the server as an administrator does.
func (s *Server) Client() *minio.Client {
	s.tb.Helper()
	c, err := minio.New(strings.TrimPrefix(s.URL, "http://"), &minio.Options{Creds: credentials.NewStaticV4(accessKey, secretKey, ""), Region: "us-east-1"})
	if err != nil {
		s.tb.Fatal(err)
	}
	return c
}

// NewBucket makes an empty bucket and gives its name.
func (s *Server) NewBucket() string {
	s.tb.Helper()
	name := fmt.Sprintf("test-%d", rand.Uint64())
	if err := s.Client().MakeBucket(context.Background(), name, minio.MakeBucketOptions{}); err != nil {
		s.tb.Fatalf("make a bucket: %v", err)
	}
	return name
}

// Uploads gives the keys of the multipart uploads of a bucket that were neither completed nor aborted.
func (s *Server) Uploads(bucket string) []string {
	s.tb.Helper()
	var keys []string
	for u := range s.Client().ListIncompleteUploads(context.Background(), bucket, "", true) {
		if u.Err != nil {
			s.tb.Fatal(u.Err)
		}
		keys = append(keys, u.Key)
	}
	return keys
}

// freeAddr is a loopback address that is free now, below the ports that outgoing connections take.
func freeAddr(tb testing.TB) string {
	tb.Helper()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		l, err := net.Listen("tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			tb.Fatal(err)
		}
		l.Close()
		return addr
	}
	tb.Fatal("no free port below 32768")
	return ""
}
