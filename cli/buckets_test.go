package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/blobs"
	"hearthline/blobs/s3test"
	"hearthline/cli/clitest"
	"hearthline/ingest/identity"
	"hearthline/sinks/parquet"
)

// bucketPlan keeps files and checkpoints in one bucket. The windows are a state that is too large for a commit.
const bucketPlan = `pipeline: buckets
kafka: {brokers: "${HEARTHLINE_KAFKA}"}
durability: process
checkpoint:
  every: 500ms
  to: s3://BUCKET/state
  s3: SERVER
gateway:
  to: raw
  settings:
    mqtt: ${HEARTHLINE_MQTT}
    http: ${HEARTHLINE_HTTP}
    certificate: ${HEARTHLINE_CERTIFICATE}
    key: ${HEARTHLINE_KEY}
    credentials: ${HEARTHLINE_CREDENTIALS}
stages:
  normalize: {from: raw, to: clean}
  dedupe: {from: clean, to: readings}
  features: {from: readings, to: {features: features, late: _}, settings: {windows: [5s], lateness: 1s}}
sinks:
  parquet:
    from: [readings, features]
    settings:
      to: s3://BUCKET/files
      flush_wait: 500ms
      s3: SERVER
`

// Parquet files and checkpoints are in a bucket of a real S3 server, reached through a proxy. A stage and the sink are
// killed -9 in mid-flow, the server itself too, and requests fail. Every acknowledged row is in the files once, and no
// secret is in what anybody says.
func TestRolesOnABucket(t *testing.T) {
	server := s3test.Start(t)
	proxy := s3test.NewProxy(t, server.URL)
	bucket := server.NewBucket()
	settings := server.Settings(proxy.URL)
	c := &clitest.Cluster{Installation: clitest.New(t), Broker: clitest.FreeAddr(t)}
	s3 := fmt.Sprintf("{endpoint: %q, region: us-east-1, access_key_file: %q, secret_key_env: THE_SECRET}", settings.Endpoint, settings.AccessKeyFile)
	c.Write(strings.NewReplacer("BUCKET", bucket, "SERVER", s3).Replace(bucketPlan))
	homes := c.Homes(12, 600, 0)
	homes.History, homes.Interval = 0, 40*time.Millisecond
	certs, err := identity.DevCertificates(filepath.Join(c.Data, "gateway"))
	if err != nil {
		t.Fatal(err)
	}
	c.Env = []string{
		"HEARTHLINE_KAFKA=" + c.Broker, "HEARTHLINE_MQTT=" + c.MQTT, "HEARTHLINE_HTTP=" + c.HTTP,
		"HEARTHLINE_CERTIFICATE=" + certs.Certificate, "HEARTHLINE_KEY=" + certs.Key,
		"HEARTHLINE_CREDENTIALS=" + filepath.Join(c.Data, "gateway", "credentials.yaml"), "HEARTHLINE_INSTANCE=g1",
		"THE_SECRET=" + s3test.SecretKey,
	}
	broker := c.StartBroker()
	var all []*clitest.Running
	role := func(args ...string) *clitest.Running {
		r := c.Role(args...)
		all = append(all, r)
		return r
	}
	gateway, normalize, dedupe := role("gateway"), role("stage", "normalize"), role("stage", "dedupe")
	features, files := role("stage", "features"), role("sink", "parquet")
	ended := clitest.Play(t.Context(), homes)
	more := func(rows int64) { // so many more rows are acknowledged
		t.Helper()
		want, deadline := homes.Stats().Acknowledged+rows, time.Now().Add(2*time.Minute)
		for homes.Stats().Acknowledged < want {
			if time.Now().After(deadline) {
				t.Fatalf("no %d rows more within 2 minutes: %+v", rows, homes.Stats())
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	more(15000)
	dedupe.Kill()
	files.Kill()
	dedupe, files = role("stage", "dedupe"), role("sink", "parquet")
	more(15000)
	proxy.Break(s3test.Sometimes(3, s3test.Fault{Status: 503, Code: "SlowDown"}, s3test.Fault{LoseAnswer: true}, s3test.Fault{CutRequest: 1}))
	more(15000)
	features.Kill()
	features = role("stage", "features")
	more(15000)
	proxy.Break(nil)
	server.Kill()
	more(10000)
	time.Sleep(2 * time.Second) // an outage takes time; nothing can be polled for
	server.Run()
	files.Kill()
	files = role("sink", "parquet")
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	want, err := homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	store, err := blobs.OpenS3(bucket, "files", server.Settings(server.URL))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	c.Eventually("rows in Parquet", strconv.FormatInt(want, 10), func() string {
		n, err := parquet.Count(t.Context(), store, "readings")
		if err != nil {
			return err.Error()
		}
		return strconv.FormatInt(n.Rows, 10)
	})
	rows := int64(0)
	for r, err := range parquet.Read(t.Context(), store, "readings") {
		if err != nil {
			t.Fatal(err)
		}
		rows += r.Record.NumRows()
	}
	if rows != want {
		t.Errorf("%d readings can be read of %d", rows, want)
	}
	// Windows close when the gateway's heartbeats have carried time on.
	c.Eventually("features in Parquet", "some", func() string {
		n, err := parquet.Count(t.Context(), store, "features")
		if err != nil || n.Rows == 0 {
			return fmt.Sprint(n.Rows, err)
		}
		return "some"
	})
	// All of it goes through a stage again, read from the bucket.
	again := exec.Command(c.Binary, "replay", "--name", "bucket", "--from", "parquet:readings", "--stage", "features", "--pipeline", c.Pipeline, "--data", c.Data)
	again.Env = append(os.Environ(), c.Env...)
	if out, err := again.CombinedOutput(); err != nil || !regexp.MustCompile(`features +← readings +`+count(want)+"\n").Match(out) {
		t.Errorf("a replay from the bucket: %v\n%s", err, out)
	} else if strings.Contains(string(out), s3test.SecretKey) {
		t.Error("a replay has said the secret")
	}
	if _, err := os.Stat(filepath.Join(c.Data, "checkpoints")); err == nil {
		t.Error("there are checkpoints in the data folder, too")
	}
	states, err := os.ReadDir(filepath.Join(server.Root, bucket, "state", "checkpoints"))
	if err != nil || len(states) == 0 {
		t.Errorf("no checkpoints in the bucket: %v", err)
	}
	for _, r := range []*clitest.Running{gateway, normalize, dedupe, features, files} {
		r.Terminate()
	}
	broker.End(t)
	for _, r := range all {
		if strings.Contains(r.Out.String(), s3test.SecretKey) {
			t.Error("a log holds the secret key")
		}
	}
	t.Logf("%d rows", want)
}
