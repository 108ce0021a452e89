package blobs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	keys "hearthline/flow/secret"
)

// S3 says how a server of the S3 protocol is reached: what stands beside an address such as s3://bucket/prefix. The
// zero S3 is Amazon's own, with credentials as Amazon's tools find them.
type S3 struct {
	// Endpoint is the server's URL, such as https://minio.example.com:9000; without one it is Amazon's.
	Endpoint string `yaml:"endpoint"`
	// Region of the bucket; where it is not set, the server is asked.
	Region string `yaml:"region"`
	// AccessKeyEnv names the environment variable that holds the access key. Without keys the usual places are looked
	// at: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, the role of the pod or machine.
	AccessKeyEnv string `yaml:"access_key_env"`
	// AccessKeyFile is a file that holds the access key.
	AccessKeyFile string `yaml:"access_key_file"`
	// SecretKeyEnv names the environment variable that holds the secret key.
	SecretKeyEnv string `yaml:"secret_key_env"`
	// SecretKeyFile is a file that holds the secret key.
	SecretKeyFile string `yaml:"secret_key_file"`
	// PathStyle puts the bucket into the path of URLs, not into the host's name. Servers other than Amazon's are
	// spoken to so in any case.
	PathStyle bool `yaml:"path_style"`
	// CA is a PEM file with certificates to trust beside the system's.
	CA string `yaml:"ca"`
}

// Validate says what is wrong with the settings by themselves; each message begins with the setting.
func (s *S3) Validate() error {
	var errs []error
	if s.Endpoint != "" {
		u, err := url.Parse(s.Endpoint)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
			errs = append(errs, errors.New("endpoint: want a URL, such as https://minio.example.com:9000"))
		case u.User != nil:
			errs = append(errs, errors.New("endpoint: it holds a user; keys are set by access_key_env and secret_key_env"))
		case strings.Trim(u.Path, "/") != "" || u.RawQuery != "":
			errs = append(errs, errors.New("endpoint: want no path; the bucket stands in s3://bucket/prefix"))
		}
	}
	if s.AccessKeyEnv != "" && s.AccessKeyFile != "" {
		errs = append(errs, errors.New("access_key_file: access_key_env is set too; set one"))
	}
	if s.SecretKeyEnv != "" && s.SecretKeyFile != "" {
		errs = append(errs, errors.New("secret_key_file: secret_key_env is set too; set one"))
	}
	access, secret := s.AccessKeyEnv+s.AccessKeyFile != "", s.SecretKeyEnv+s.SecretKeyFile != ""
	if access && !secret {
		errs = append(errs, fmt.Errorf("%s: there is no secret key to it; set secret_key_env or secret_key_file", first(s.AccessKeyEnv, "access_key_env", "access_key_file")))
	}
	if secret && !access {
		errs = append(errs, fmt.Errorf("%s: there is no access key to it; set access_key_env or access_key_file", first(s.SecretKeyEnv, "secret_key_env", "secret_key_file")))
	}
	return errors.Join(errs...)
}

// first gives a where value is set, else b.
func first(value, a, b string) string {
	if value != "" {
		return a
	}
	return b
}

// Limits of a Bucket.
const (
	// s3PartBytes is the size of the parts that large objects are sent in. S3 allows 10,000 of them: an object has
	// at most 160 GB.
	s3PartBytes = 16 << 20
	// s3PartsAtOnce is how many are under way at once for one object. A source of unknown length is read into memory
	// part by part, so a Put of one takes at most one more than that: 80 MiB.
	s3PartsAtOnce = 4
	// s3Tries is how often one request is sent. Between two tries the client waits up to 1 s, at random: about 2 s
	// in all. Who needs more patience, as sinks and tasks do, calls again.
	s3Tries = 5
	// s3StallMax is how long a connection may stand still, sending or receiving, before it is given up.
	s3StallMax = 30 * time.Second
	// s3AbortWait is for taking back what a failed Put has sent, even after the caller's context has ended.
	s3AbortWait = 10 * time.Second
	// s3KeyMax is the length of a key, bytes: the prefix and the name.
	s3KeyMax = 1024
)

// Bucket is a [Store] in a bucket of an S3 server: an object is one there, its key the prefix, a slash and the name.
//
// A Put becomes visible with one request, whole: PutObject, or for what is larger than one part
// CompleteMultipartUpload. A Put that fails takes its parts back. A process that is killed cannot: a lifecycle rule of
// the bucket should abort incomplete multipart uploads after a day, for they are invisible but cost storage.
//
// An answer may be lost and its request take effect all the same, even after a later one: a Put that failed may
// appear, or a deleted object come back. So names that are not used twice for different bytes are what it is good
// for, and those are what checkpoints and Parquet files have.
type Bucket struct {
	bucket, prefix string // prefix is "" or ends with a slash
	where          string // s3://bucket/prefix, for messages
	client         *minio.Client
	transport      *http.Transport
	partBytes      int64
}

// OpenS3 opens a bucket, or what lies under a prefix in it, as a store. It talks to nobody yet.
func OpenS3(bucket, prefix string, s S3) (*Bucket, error) {
	return openS3(bucket, prefix, s, s3StallMax)
}

func openS3(bucket, prefix string, s S3, stallMax time.Duration) (*Bucket, error) {
	b := &Bucket{bucket: bucket, where: "s3://" + bucket, partBytes: s3PartBytes}
	if prefix != "" {
		b.prefix, b.where = prefix+"/", b.where+"/"+prefix
	}
	fail := func(err error) (*Bucket, error) { return nil, fmt.Errorf("open blob store %s: %w", b.where, err) }
	if err := errors.Join(checkBucket(bucket, prefix), s.Validate()); err != nil {
		return fail(err)
	}
	keys, err := s.credentials()
	if err != nil {
		return fail(err)
	}
	endpoint, secure := "s3.amazonaws.com", true
	if s.Endpoint != "" {
		u, err := url.Parse(s.Endpoint)
		if err != nil {
			return fail(err)
		}
		endpoint, secure = u.Host, u.Scheme == "https"
	}
	if b.transport, err = s.transport(secure, stallMax); err != nil {
		return fail(err)
	}
	options := &minio.Options{Creds: keys, Secure: secure, Transport: b.transport, Region: s.Region, MaxRetries: s3Tries}
	if s.PathStyle {
		options.BucketLookup = minio.BucketLookupPath
	}
	if b.client, err = minio.New(endpoint, options); err != nil {
		return fail(err)
	}
	return b, nil
}

// Close ends idle connections.
func (b *Bucket) Close() error {
	b.transport.CloseIdleConnections()
	return nil
}

// checkBucket says what is wrong with s3://bucket/prefix.
func checkBucket(bucket, prefix string) error {
	if err := s3utils.CheckValidBucketNameStrict(bucket); err != nil {
		return fmt.Errorf("%q cannot be a bucket: %w", bucket, err)
	}
	if prefix == "" {
		return nil
	}
	if err := CheckName(prefix); err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	return nil
}

// credentials reads the keys from where the settings say they are.
func (s *S3) credentials() (*credentials.Credentials, error) {
	if s.AccessKeyEnv+s.AccessKeyFile == "" {
		return credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{},
		}), nil
	}
	access, err := secret("access_key", s.AccessKeyEnv, s.AccessKeyFile)
	if err != nil {
		return nil, err
	}
	key, err := secret("secret_key", s.SecretKeyEnv, s.SecretKeyFile)
	if err != nil {
		return nil, err
	}
	return credentials.NewStaticV4(access, key, ""), nil
}

// secret reads one key. What it holds is in no error.
func secret(setting, env, file string) (string, error) {
	if env != "" {
		v := os.Getenv(env)
		if v == "" {
			return "", fmt.Errorf("%s_env: the variable %s is not set", setting, env)
		}
		return v, nil
	}
	b, err := keys.File(file)
	if err != nil {
		return "", fmt.Errorf("%s_file: %w", setting, err)
	}
	v := strings.TrimRight(string(b), "\r\n")
	if v == "" {
		return "", fmt.Errorf("%s_file: %s is empty", setting, file)
	}
	return v, nil
}

// transport is the client's own, but for certificates, and for connections that are given up when they stand still:
// neither a body that is not taken nor an answer that does not come has a limit in net/http.
func (s *S3) transport(secure bool, stallMax time.Duration) (*http.Transport, error) {
	t, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return stallConn{c, stallMax}, nil
	}
	t.ResponseHeaderTimeout = stallMax
	t.WriteBufferSize, t.ReadBufferSize = 64<<10, 64<<10
	if s.CA == "" {
		return t, nil
	}
	pem, err := os.ReadFile(s.CA)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	if !secure {
		return nil, errors.New("ca: the endpoint is http://, which has no certificates")
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca: %s holds no certificate in PEM", s.CA)
	}
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	t.TLSClientConfig.RootCAs = pool
	return t, nil
}

// stallConn fails when no byte passes for so long.
type stallConn struct {
	net.Conn
	max time.Duration
}

func (c stallConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.max)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c stallConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.max)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// key is the object's name in the bucket.
func (b *Bucket) key(name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	if key := b.prefix + name; len(key) <= s3KeyMax {
		return key, nil
	}
	return "", fmt.Errorf("%w: with the prefix %q it has more than %d bytes", ErrName, b.prefix, s3KeyMax)
}

func (b *Bucket) List(ctx context.Context, prefix string) ([]Info, error) {
	if err := CheckPrefix(prefix); err != nil {
		return nil, b.fail("list", prefix, err)
	}
	var list []Info
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the listing where we leave it
	for o := range b.client.ListObjectsIter(ctx, b.bucket, minio.ListObjectsOptions{Prefix: b.prefix + prefix, Recursive: true}) {
		if o.Err != nil {
			return nil, b.fail("list", prefix, o.Err)
		}
		name, ok := strings.CutPrefix(o.Key, b.prefix)
		if !ok || CheckName(name) != nil { // markers of folders, and what is none of ours
			continue
		}
		list = append(list, Info{Name: name, Size: o.Size})
	}
	if err := ctx.Err(); err != nil {
		return nil, b.fail("list", prefix, err)
	}
	return inOrder(list), nil
}

func (b *Bucket) Delete(ctx context.Context, name string) error {
	key, err := b.key(name)
	if err == nil {
		err = b.client.RemoveObject(ctx, b.bucket, key, minio.RemoveObjectOptions{})
	}
	if err != nil && codeOf(err) != minio.NoSuchKey {
		return b.fail("delete", name, err)
	}
	return nil
}
