package embedded

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// Names of the users. The engine's own first user, `default`, has no password and cannot be taken away, so it
// may do one thing only: open the doors.
const (
	adminUser     = "admin"
	writerUser    = "writer"
	dashboardUser = "dashboard"
)

// secrets are the users' passwords: random, made once a data directory, kept readable for its owner only.
type secrets struct {
	Admin     string `json:"admin"`
	Writer    string `json:"writer"`
	Dashboard string `json:"dashboard"`
}

func readSecrets(dir string) (secrets, error) {
	var s secrets
	b, err := os.ReadFile(filepath.Join(dir, secretsFile)) // #nosec G304 -- a file of the data folder
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s: %w; delete it to have new secrets made", filepath.Join(dir, secretsFile), err)
	}
	if s.Admin == "" || s.Writer == "" || s.Dashboard == "" {
		return s, fmt.Errorf("%s lacks a user; delete it to have new secrets made", filepath.Join(dir, secretsFile))
	}
	return s, nil
}

func makeSecrets(dir string) (secrets, error) {
	s, err := readSecrets(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	s = secrets{Admin: rand.Text(), Writer: rand.Text(), Dashboard: rand.Text()}
	b, err := json.Marshal(s)
	if err != nil {
		return s, err
	}
	return s, writeFile(filepath.Join(dir, secretsFile), b)
}

// writeFile replaces a file at once, readable for its owner only.
func writeFile(path string, b []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// prepare writes the configuration and says what it offers.
func (s *Server) prepare() (Endpoints, error) {
	keys, err := makeSecrets(s.Dir)
	if err != nil {
		return Endpoints{}, fmt.Errorf("clickhouse: secrets: %w", err)
	}
	dir, err := filepath.Abs(s.Dir)
	if err != nil {
		return Endpoints{}, fmt.Errorf("clickhouse: data directory: %w", err)
	}
	host, httpPort, _ := net.SplitHostPort(s.HTTPAddr) // both looked at by check
	_, tcpPort, _ := net.SplitHostPort(s.TCPAddr)
	if host == "" {
		host = "0.0.0.0"
	}
	v := configValues{
		Data: filepath.Join(dir, dataDir), Users: filepath.Join(dir, usersFile),
		Host: host, HTTPPort: httpPort, TCPPort: tcpPort, Database: s.Database,
		KeepFree: keepFree(dir),
		Admin:    hash(keys.Admin), Writer: hash(keys.Writer), Dashboard: hash(keys.Dashboard),
	}
	for name, t := range map[string]*template.Template{configFile: configXML, usersFile: usersXML} {
		var b strings.Builder
		if err := t.Execute(&b, v); err != nil {
			return Endpoints{}, fmt.Errorf("clickhouse: %s: %w", name, err)
		}
		if err := writeFile(filepath.Join(dir, name), []byte(b.String())); err != nil {
			return Endpoints{}, fmt.Errorf("clickhouse: %s: %w", name, err)
		}
	}
	return Endpoints{
		HTTP: s.HTTPAddr, TCP: s.TCPAddr, Database: s.Database,
		Admin:     User{adminUser, keys.Admin},
		Writer:    User{writerUser, keys.Writer},
		Dashboard: User{dashboardUser, keys.Dashboard},
	}, nil
}

func hash(password string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(password))) }

type configValues struct {
	KeepFree                 uint64 // bytes
	Data, Users              string
	Host, HTTPPort, TCPPort  string
	Database                 string
	Admin, Writer, Dashboard string // SHA-256, hex
}

func xmlTemplate(name, text string) *template.Template {
	escape := func(s string) (string, error) {
		var b strings.Builder
		err := xml.EscapeText(&b, []byte(s))
		return b.String(), err
	}
	return template.Must(template.New(name).Funcs(template.FuncMap{"x": escape}).Parse(text))
}

// keepFree is how many bytes of its disk the engine leaves alone: a fiftieth of it, 64 MiB at least and 1 GiB at most. Below that
// it refuses inserts, which then wait in Kafka, and merges nothing. It must not find the disk full: version 26.7.3 of the
// library may then keep a merged part whose files are empty, and forget the parts it was made of.
func keepFree(dir string) uint64 {
	return min(max(diskSize(dir)/50, 64<<20), 1<<30)
}

// The library reads the level of its log from <log-level>, the binary from <logger>. The caches are small beside
// ClickHouse's own defaults (5 GB and more), which are made for a machine of its own.
var configXML = xmlTemplate(configFile, `<clickhouse>
  <log-level>warning</log-level>
  <logger><level>warning</level><console>true</console></logger>
  <path>{{x .Data}}/</path>
  <tmp_path>{{x .Data}}/tmp/</tmp_path>
  <user_files_path>{{x .Data}}/user_files/</user_files_path>
  <format_schema_path>{{x .Data}}/format_schemas/</format_schema_path>
  <listen_host>{{x .Host}}</listen_host>
  <http_port>{{x .HTTPPort}}</http_port>
  <tcp_port>{{x .TCPPort}}</tcp_port>
  <user_directories><users_xml><path>{{x .Users}}</path></users_xml></user_directories>
  <default_profile>default</default_profile>
  <default_database>default</default_database>
  <mark_cache_size>134217728</mark_cache_size>
  <max_server_memory_usage_to_ram_ratio>0.6</max_server_memory_usage_to_ram_ratio>
  <shutdown_wait_unfinished>2</shutdown_wait_unfinished>
  <storage_configuration><disks><default><keep_free_space_bytes>{{.KeepFree}}</keep_free_space_bytes></default></disks></storage_configuration>
  <send_crash_reports><enabled>false</enabled></send_crash_reports>
</clickhouse>
`)

// The writer has what docs/operations.md grants for a server of one's own: it makes tables and adds columns, and can
// neither drop nor empty nor rewrite one. readonly 2: may read, and change settings of its own queries, as Grafana does.
var usersXML = xmlTemplate(usersFile, `<clickhouse>
  <profiles>
    <default/>
    <reader><readonly>2</readonly><max_execution_time>60</max_execution_time></reader>
  </profiles>
  <quotas><default/></quotas>
  <users>
    <default>
      <password></password>
      <networks><ip>127.0.0.1</ip><ip>::1</ip></networks>
      <profile>default</profile><quota>default</quota>
      <grants><query>GRANT SYSTEM LISTEN ON *.*</query></grants>
    </default>
    <admin>
      <password_sha256_hex>{{.Admin}}</password_sha256_hex>
      <networks><ip>::/0</ip></networks>
      <profile>default</profile><quota>default</quota>
    </admin>
    <writer>
      <password_sha256_hex>{{.Writer}}</password_sha256_hex>
      <networks><ip>::/0</ip></networks>
      <profile>default</profile><quota>default</quota>
      <grants>
        <query>GRANT SELECT, INSERT, CREATE DATABASE, CREATE TABLE, CREATE VIEW, ALTER ADD COLUMN ON {{x .Database}}.*</query>
        <query>GRANT SELECT ON system.parts</query>
        <query>GRANT SELECT ON system.disks</query>
        <query>GRANT TABLE ENGINE ON MergeTree, TABLE ENGINE ON AggregatingMergeTree, TABLE ENGINE ON ReplacingMergeTree</query>
      </grants>
    </writer>
    <dashboard>
      <default_database>{{x .Database}}</default_database>
      <password_sha256_hex>{{.Dashboard}}</password_sha256_hex>
      <networks><ip>::/0</ip></networks>
      <profile>reader</profile><quota>default</quota>
      <grants>
        <query>GRANT SHOW, SELECT, dictGet ON {{x .Database}}.*</query>
        <query>GRANT SHOW, SELECT ON {{x .Database}}_replay_*.*</query>
        <query>GRANT SELECT ON system.*</query>
      </grants>
    </dashboard>
  </users>
</clickhouse>
`)

// Admin is the user of the server of a data directory who may do everything.
func Admin(dir string) (User, error) {
	s, err := readSecrets(dir)
	if err != nil {
		return User{}, fmt.Errorf("clickhouse: secrets: %w", err)
	}
	return User{adminUser, s.Admin}, nil
}
