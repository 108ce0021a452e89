package cli

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/cli/clitest"
	"hearthline/ingest/identity"
	"hearthline/sinks/parquet"
	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
)

// rightsOf are the least rights of each role on Kafka, as docs/operations.md lists them.
var rightsOf = map[string][]string{
	"gateway": {"topic raw write", "topic commands write", "topic homes.* read,write"},
	"normalize": {
		"topic raw read", "topic readings write", "topic normalize.dead write", "topic dedupe.dead write", "topic enrich.dead write",
		"group homes.normalize+dedupe+enrich read",
	},
	"features": {"topic readings read", "topic features write", "topic late write", "topic features.dead write", "group homes.features read"},
	"parquet": {
		"topic readings read", "topic features read", "topic scores read", "topic parquet.dead write",
		"group homes.parquet read",
	},
	// Whoever installs it: makes the streams that are missing.
	"installer": {"topic * describe,create"},
}

// The roles as processes of their own on Apache Kafka, over TLS, each logged in as a user with the rights of its role and
// no other. The broker is killed and started again, and a stage too. Every acknowledged row is in Parquet once.
func TestRolesWithLeastRightsOnApacheKafka(t *testing.T) {
	c := &clitest.Cluster{Installation: clitest.New(t)}
	kafka := apache.New()
	kafka.Security = &apache.Security{TLS: true, Users: map[string]string{}}
	for user := range rightsOf {
		kafka.Security.Users[user] = "the password of " + user
	}
	c.Broker = apachetest.Start(t, kafka)[0]
	for user, rights := range rightsOf {
		rights = append([]string{"topic hearthline.schemas read,write", "topic hearthline.nodes read,write", "topic * describe"}, rights...)
		if err := kafka.Allow(t.Context(), user, rights...); err != nil {
			t.Fatal(err)
		}
	}
	plan, err := os.ReadFile(c.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	c.Write(strings.Replace(string(plan), "kafka:\n", "kafka:\n  tls: {ca: "+kafka.CA()+"}\n"+
		"  sasl: {mechanism: SCRAM-SHA-512, user: \"${KAFKA_USER}\", password_env: KAFKA_PASSWORD}\n", 1))
	homes := c.Homes(8, 600, 800)
	homes.History, homes.Interval = 0, 40*time.Millisecond
	if err := homes.WriteRegistry(filepath.Join(c.Data, "registry.csv")); err != nil {
		t.Fatal(err)
	}
	certs, err := identity.DevCertificates(filepath.Join(c.Data, "gateway"))
	if err != nil {
		t.Fatal(err)
	}
	env := []string{
		"HEARTHLINE_KAFKA=" + c.Broker, "HEARTHLINE_MQTT=" + c.MQTT, "HEARTHLINE_HTTP=" + c.HTTP,
		"HEARTHLINE_CERTIFICATE=" + certs.Certificate, "HEARTHLINE_KEY=" + certs.Key,
		"HEARTHLINE_CREDENTIALS=" + filepath.Join(c.Data, "gateway", "credentials.yaml"),
	}
	role := func(user string, args ...string) *clitest.Running {
		t.Helper()
		c.Env = append(env, "KAFKA_USER="+user, "KAFKA_PASSWORD=the password of "+user)
		return c.Role(args...)
	}

	// Who may not create the streams says so, and ends: whoever runs it starts it again.
	refused := role("gateway", "gateway")
	refused.Expect("Create to make it", 30*time.Second)
	if code := refused.Exit(30 * time.Second); code != 1 {
		t.Errorf("exit code %d without the right to create the streams; want 1", code)
	}
	// The installer's rights are enough to make them, and no more.
	installer := role("installer", "stage", "score")
	installer.Expect("Group Authorization Failed", time.Minute)
	installer.Exit(time.Minute)

	gateway := role("gateway", "gateway")
	normalize := role("normalize", "stage", "normalize")
	features, intoParquet := role("features", "stage", "features"), role("parquet", "sink", "parquet")
	ended := clitest.Play(t.Context(), homes)
	acknowledged := func(rows int64) {
		t.Helper()
		for deadline := time.Now().Add(2 * time.Minute); homes.Stats().Acknowledged < rows; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no %d rows within 2 minutes: %+v", rows, homes.Stats())
			}
		}
	}
	acknowledged(1500)
	if err := kafka.Kill(1); err != nil {
		t.Fatal(err)
	}
	if err := kafka.Restart(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	acknowledged(3000)
	normalize.Kill()
	normalize = role("normalize", "stage", "normalize")
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	want, err := homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	c.Eventually("rows in Parquet", strconv.FormatInt(want, 10), func() string {
		n, err := parquet.Count(t.Context(), c.ParquetStore(), "readings")
		if err != nil {
			return err.Error()
		}
		return strconv.FormatInt(n.Rows, 10)
	})
	for _, r := range []*clitest.Running{gateway, normalize, features, intoParquet} {
		if strings.Contains(r.Out.String(), "Authorization") || strings.Contains(r.Out.String(), "the password of") {
			t.Errorf("%v said:\n%s", r.Cmd.Args[1:3], clitest.LastLines(r.Out.String(), 20))
		}
		r.Terminate()
	}
	t.Logf("%d rows", want)
}
