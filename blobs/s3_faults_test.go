package blobs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hearthline/blobs"
	"hearthline/blobs/s3test"
)

const (
	smallObject = 100_000
	largeObject = 20 << 20 // two parts
)

func pattern(size int) []byte { return bytes.Repeat([]byte("0123456789abcdef!"), size/17+1)[:size] }

// requestOf tells the requests of a Put apart.
func requestOf(r *http.Request) string {
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodPost && q.Has("uploads"):
		return "begin"
	case r.Method == http.MethodPut && q.Has("partNumber"):
		return "part"
	case r.Method == http.MethodPost && q.Has("uploadId"):
		return "complete"
	case r.Method == http.MethodDelete && q.Has("uploadId"):
		return "abort"
	}
	return strings.ToLower(r.Method)
}

// breaksTimes breaks the first times requests of a kind.
func breaksTimes(kind string, times int64, f s3test.Fault) func(*http.Request) s3test.Fault {
	var n atomic.Int64
	return func(r *http.Request) s3test.Fault {
		if requestOf(r) != kind || n.Add(1) > times {
			return s3test.Fault{}
		}
		return f
	}
}

var badMoments = map[string]s3test.Fault{
	"slow down":                     {Status: http.StatusServiceUnavailable, Code: "SlowDown"},
	"internal error":                {Status: http.StatusInternalServerError, Code: "InternalError"},
	"bad gateway":                   {Status: http.StatusBadGateway, Code: "BadGateway"},
	"cut while the request is sent": {CutRequest: 50_000},
	"cut before the answer":         {LoseAnswer: true},
}

// TestBucketBadMoments: what goes wrong for a moment is tried again, whichever request it meets.
func TestBucketBadMoments(t *testing.T) {
	server := s3test.Start(t)
	for what, fault := range badMoments {
		for _, kind := range []string{"put", "begin", "part", "complete"} {
			if fault.CutRequest > 0 && (kind == "begin" || kind == "complete") {
				continue // they have no body to speak of
			}
			t.Run(kind+", "+what, func(t *testing.T) {
				t.Parallel() // most of the time is spent waiting for the next try
				bucket, proxy, b, direct := behindProxy(t, server)
				want := pattern(largeObject)
				if kind == "put" {
					want = want[:smallObject]
				}
				proxy.Break(breaksTimes(kind, 2, fault))
				name := kind + "/" + what
				must(t, b.Put(t.Context(), name, bytes.NewReader(want)))
				proxy.Break(nil)
				same(t, direct, name, want)
				left := server.Uploads(bucket)
				if lost := kind == "begin" && fault.LoseAnswer; !lost && slices.Contains(left, "p/"+name) {
					t.Errorf("uploads left: %v", left) // of one whose answer is lost, nobody knows
				}
			})
		}
	}
	for what, fault := range badMoments {
		t.Run("reading, "+what, func(t *testing.T) {
			t.Parallel()
			_, proxy, b, direct := behindProxy(t, server)
			if fault.CutRequest > 0 {
				fault = s3test.Fault{CutResponse: 70_000}
			}
			must(t, direct.Put(t.Context(), "read", bytes.NewReader(pattern(largeObject))))
			proxy.Break(breaksTimes("get", 2, fault))
			same(t, b, "read", pattern(largeObject))
			proxy.Break(breaksTimes("get", 2, fault))
			r, err := b.Get(t.Context(), "read")
			must(t, err)
			got := make([]byte, 1<<20)
			_, err = r.(io.ReaderAt).ReadAt(got, 12345)
			must(t, err)
			must(t, r.Close())
			if !bytes.Equal(got, pattern(largeObject)[12345:12345+1<<20]) {
				t.Error("other bytes")
			}
			proxy.Break(breaksTimes("get", 2, fault))
			if list, err := b.List(t.Context(), "read"); err != nil || len(list) != 1 {
				t.Errorf("list: %v, %v", list, err)
			}
			proxy.Break(breaksTimes("delete", 2, fault))
			must(t, b.Delete(t.Context(), "read"))
			proxy.Break(nil)
		})
	}
}

// behindProxy is a bucket of its own, reached through a proxy and without one.
func behindProxy(t *testing.T, server *s3test.Server) (bucket string, proxy *s3test.Proxy, b, direct *blobs.Bucket) {
	t.Helper()
	bucket, proxy = server.NewBucket(), s3test.NewProxy(t, server.URL)
	return bucket, proxy, openBucket(t, bucket, "p", server.Settings(proxy.URL)), openBucket(t, bucket, "p", server.Settings(server.URL))
}

func same(t *testing.T, s blobs.Store, name string, want []byte) {
	t.Helper()
	r, err := s.Get(t.Context(), name)
	must(t, err)
	defer r.Close()
	got, err := io.ReadAll(r)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s holds %d bytes that differ from the %d put", name, len(got), len(want))
	}
}

// TestBucketBadWorld: what stays wrong is given up after a few tries; nothing can be seen of the object, and its parts
// are taken back.
func TestBucketBadWorld(t *testing.T) {
	server := s3test.Start(t)
	for _, kind := range []string{"put", "begin", "part", "complete"} {
		for what, fault := range badMoments {
			if fault.LoseAnswer && kind != "part" || fault.CutRequest > 0 && (kind == "begin" || kind == "complete") {
				continue // it is done all the same
			}
			t.Run(kind+", "+what, func(t *testing.T) {
				t.Parallel()
				bucket, proxy, b, direct := behindProxy(t, server)
				must(t, direct.Put(t.Context(), "x", strings.NewReader("old")))
				size := largeObject
				if kind == "put" {
					size = smallObject
				}
				proxy.Break(breaksTimes(kind, 1000, fault))
				err := b.Put(t.Context(), "x", bytes.NewReader(pattern(size)))
				proxy.Break(nil)
				if err == nil || !strings.Contains(err.Error(), `put "x" in s3://`+bucket) {
					t.Errorf("error %v; want one that says what was done", err)
				}
				if fault.Code == "SlowDown" && !strings.Contains(err.Error(), "asks for fewer requests") {
					t.Errorf("error %v", err)
				}
				if n := len(proxy.Requests()); n > 30 {
					t.Errorf("%d requests for one put", n)
				}
				same(t, direct, "x", []byte("old"))
				if left := server.Uploads(bucket); len(left) > 0 {
					t.Errorf("uploads left: %v", left)
				}
			})
		}
	}
}

// TestBucketHangs: a server that neither takes nor answers is given up.
func TestBucketHangs(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	proxy := s3test.NewProxy(t, server.URL)
	bucket := server.NewBucket()
	b, err := blobs.OpenS3Impatient(bucket, "", server.Settings(proxy.URL), 2*time.Second)
	must(t, err)
	defer b.Close()
	never := make(chan struct{})
	defer close(never)
	for kind, size := range map[string]int{"put": smallObject, "part": largeObject} {
		proxy.Break(breaksTimes(kind, 1, s3test.Fault{Hang: never}))
		must(t, b.Put(t.Context(), "for a moment", bytes.NewReader(pattern(size))))
		same(t, b, "for a moment", pattern(size))
	}
	proxy.Break(breaksTimes("part", 1000, s3test.Fault{Hang: never}))
	if err := b.Put(t.Context(), "for ever", bytes.NewReader(pattern(largeObject))); err == nil {
		t.Error("a put that nobody answered has succeeded")
	}
	proxy.Break(nil)
	if list, err := b.List(t.Context(), "for ever"); err != nil || len(list) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
	if left := server.Uploads(bucket); len(left) > 0 {
		t.Errorf("uploads left: %v", left)
	}
}

// TestBucketServerKilled: the server is killed in mid-upload and comes back. The put is done or it has failed, and in
// no case is a part of it to be seen.
func TestBucketServerKilled(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	proxy := s3test.NewProxy(t, server.URL)
	bucket := server.NewBucket()
	b := openBucket(t, bucket, "", server.Settings(proxy.URL))
	proxy.Slow(10 << 20)
	for _, size := range []int{8 << 20, largeObject} {
		name := fmt.Sprint(size)
		result := make(chan error, 1)
		go func() { result <- b.Put(t.Context(), name, bytes.NewReader(pattern(size))) }()
		time.Sleep(300 * time.Millisecond) // of about one or two seconds
		server.Kill()
		time.Sleep(200 * time.Millisecond)
		server.Run()
		err := <-result
		list, listErr := b.List(t.Context(), name)
		must(t, listErr)
		t.Logf("put of %d bytes: %v", size, err)
		if err == nil {
			same(t, b, name, pattern(size))
		} else if len(list) != 0 {
			t.Errorf("a put that failed left %v", list)
		}
		must(t, b.Put(t.Context(), name, bytes.NewReader(pattern(size))))
		same(t, b, name, pattern(size))
	}
}

// TestBucketNothingIsSeenBefore: while an object is on its way, nobody sees any of it.
func TestBucketNothingIsSeenBefore(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	proxy := s3test.NewProxy(t, server.URL)
	bucket := server.NewBucket()
	b := openBucket(t, bucket, "", server.Settings(proxy.URL))
	direct := openBucket(t, bucket, "", server.Settings(server.URL))
	proxy.Slow(20 << 20)
	var looked int
	for name, size := range map[string]int{"small": 10 << 20, "large": largeObject} {
		result := make(chan error, 1)
		go func() { result <- b.Put(t.Context(), name, bytes.NewReader(pattern(size))) }()
		for done := false; !done; {
			select {
			case err := <-result:
				must(t, err)
				done = true
			case <-time.After(10 * time.Millisecond):
			}
			list, err := direct.List(t.Context(), name)
			must(t, err)
			if len(list) > 0 && list[0].Size != int64(size) {
				t.Fatalf("%d bytes of %d are seen", list[0].Size, size)
			}
			if len(list) == 0 {
				looked++
			}
		}
		same(t, direct, name, pattern(size))
	}
	if looked < 10 {
		t.Errorf("looked %d times while the objects were on their way", looked)
	}
}

// TestBucketClientKilled: a process that dies in a put leaves nothing to be seen. The upload it had begun stays, for a
// lifecycle rule of the bucket to end.
func TestBucketClientKilled(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	bucket := server.NewBucket()
	settings := server.Settings(server.URL)
	c := exec.Command(os.Args[0], "-test.run=^TestChildDiesInPutToBucket$")
	c.Env = append(os.Environ(), "BLOBS_TEST_BUCKET="+bucket, "BLOBS_TEST_ENDPOINT="+server.URL, "BLOBS_TEST_KEYS="+filepath.Dir(settings.AccessKeyFile))
	out, err := c.CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child should have killed itself: %v\n%s", err, out)
	}
	b := openBucket(t, bucket, "", settings)
	list, err := b.List(t.Context(), "")
	must(t, err)
	if fmt.Sprint(list) != "[{whole 5}]" {
		t.Errorf("after a crash: %v", list)
	}
	if left := server.Uploads(bucket); len(left) != 1 {
		t.Errorf("uploads left: %v; this test needs one", left)
	}
	must(t, b.Put(t.Context(), "half", strings.NewReader("whole")))
	same(t, b, "half", []byte("whole"))
}

func TestChildDiesInPutToBucket(t *testing.T) {
	bucket, keys := os.Getenv("BLOBS_TEST_BUCKET"), os.Getenv("BLOBS_TEST_KEYS")
	if bucket == "" {
		return // it is a part of TestBucketClientKilled
	}
	b := openBucket(t, bucket, "", blobs.S3{
		Endpoint: os.Getenv("BLOBS_TEST_ENDPOINT"), Region: "us-east-1",
		AccessKeyFile: filepath.Join(keys, "access"), SecretKeyFile: filepath.Join(keys, "secret"),
	})
	must(t, b.Put(t.Context(), "whole", strings.NewReader("whole")))
	dies := readFunc(func([]byte) (int, error) {
		time.Sleep(500 * time.Millisecond) // for the parts before it to arrive
		return 0, syscall.Kill(os.Getpid(), syscall.SIGKILL)
	})
	t.Fatal(b.Put(t.Context(), "half", io.MultiReader(bytes.NewReader(pattern(largeObject)), dies, dies, dies)))
}

// TestBucketSaysWhatIsWrong, and never a secret.
func TestBucketSaysWhatIsWrong(t *testing.T) {
	server := s3test.Start(t)
	bucket := server.NewBucket()
	wrongKey := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(wrongKey, []byte(s3test.SecretKey+"x"), 0o600))
	tls, ca := s3test.NewTLSProxy(t, server.URL)
	for name, c := range map[string]struct {
		bucket string
		change func(*blobs.S3)
		want   string
	}{
		"no bucket":          {bucket: "nobodys-bucket", want: "the server has no bucket nobodys-bucket"},
		"no such key":        {change: func(s *blobs.S3) { s.AccessKeyFile = wrongKey }, want: "does not take these keys"},
		"wrong secret":       {change: func(s *blobs.S3) { s.SecretKeyFile = wrongKey }, want: "does not take these keys"},
		"TLS without TLS":    {change: func(s *blobs.S3) { s.Endpoint = strings.Replace(s.Endpoint, "http", "https", 1) }, want: "write http:// in endpoint"},
		"nobody there":       {change: func(s *blobs.S3) { s.Endpoint = "http://127.0.0.1:1" }, want: "nobody listens there"},
		"unknown authority":  {change: func(s *blobs.S3) { s.Endpoint = tls.URL }, want: "set ca"},
		"no variable":        {change: func(s *blobs.S3) { s.SecretKeyFile, s.SecretKeyEnv = "", "NO_SUCH_KEY" }, want: "secret_key_env: the variable NO_SUCH_KEY is not set"},
		"no file":            {change: func(s *blobs.S3) { s.SecretKeyFile = "/no/such/file" }, want: "secret_key_file: open /no/such/file"},
		"no file of CAs":     {change: func(s *blobs.S3) { s.Endpoint, s.CA = tls.URL, "/no/such/file" }, want: "ca: open /no/such/file"},
		"no certificate":     {change: func(s *blobs.S3) { s.Endpoint, s.CA = tls.URL, wrongKey }, want: "holds no certificate in PEM"},
		"CA without TLS":     {change: func(s *blobs.S3) { s.CA = ca }, want: "has no certificates"},
		"no host":            {change: func(s *blobs.S3) { s.Endpoint = "minio:9000" }, want: "endpoint: want a URL"},
		"keys in the URL":    {change: func(s *blobs.S3) { s.Endpoint = "http://u:" + s3test.SecretKey + "@h" }, want: "endpoint: it holds a user"},
		"a path":             {change: func(s *blobs.S3) { s.Endpoint += "/bucket" }, want: "endpoint: want no path"},
		"two access keys":    {change: func(s *blobs.S3) { s.AccessKeyEnv = "X" }, want: "access_key_file: access_key_env is set too"},
		"half of the keys":   {change: func(s *blobs.S3) { s.SecretKeyFile = "" }, want: "access_key_file: there is no secret key to it"},
		"the other half":     {change: func(s *blobs.S3) { s.AccessKeyFile = "" }, want: "secret_key_file: there is no access key to it"},
		"TLS with its CA":    {change: func(s *blobs.S3) { s.Endpoint, s.CA = tls.URL, ca }},
		"path style":         {change: func(s *blobs.S3) { s.PathStyle = true }},
		"region of the host": {change: func(s *blobs.S3) { s.Region = "" }},
	} {
		t.Run(name, func(t *testing.T) {
			s := server.Settings(server.URL)
			if c.change != nil {
				c.change(&s)
			}
			if c.bucket == "" {
				c.bucket = bucket
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := func() error {
				b, err := blobs.OpenS3(c.bucket, "", s)
				if err != nil {
					return err
				}
				defer b.Close()
				if err := b.Put(ctx, "x", bytes.NewReader(pattern(largeObject))); err != nil {
					return err
				}
				_, err = b.List(ctx, "")
				return err
			}()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v; want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), s3test.SecretKey) {
				t.Errorf("the error holds a secret: %v", err)
			}
		})
	}
}

// TestBucketMemory: a stream of unknown length takes a few parts of memory, however long and slow it is.
func TestBucketMemory(t *testing.T) {
	server := s3test.Start(t)
	b := openBucket(t, server.NewBucket(), "", server.Settings(server.URL))
	const size = 256 << 20
	var most uint64
	watch := readFunc(func(p []byte) (int, error) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		most = max(most, m.HeapInuse)
		return len(p), nil
	})
	runtime.GC()
	must(t, b.Put(t.Context(), "x", io.LimitReader(watch, size)))
	if list, err := b.List(t.Context(), ""); err != nil || list[0].Size != size {
		t.Fatalf("list: %v, %v", list, err)
	}
	t.Logf("%d MB put, %d MB of memory at most", size>>20, most>>20)
	if most > 200<<20 { // 80 MiB of parts, as much again of garbage, and the rest of the test
		t.Errorf("%d MB of memory for a stream of %d MB", most>>20, size>>20)
	}
}
