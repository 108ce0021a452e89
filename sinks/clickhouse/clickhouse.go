// Package clickhouse is the sink that dashboards and notebooks query: every stream becomes a table, readings are
// rolled up by the minute and the hour as they come, and the latest state of every series is kept ready.
//
// Every row counts once. A range is inserted as one block under a token that is the range's name, and the
// server drops a block whose token it has seen: in the table and in all that is derived from it by views. What that
// rests on, each measured:
//
//   - The token beats the content, so a range must be cut the same way each time; the runtime sees to that.
//   - A table remembers the last dedupWindow blocks, of all writers together. A range must be written again before so
//     many others went into its table.
//   - Asynchronous inserts and parallel inserts cut blocks as they like, so both are off.
//
// Rows carry no stream, partition and offset. Measured on 3 M readings they add 0.26 to 7.6 bytes a row, which is little, but
// they would buy nothing: the token does their work without a look at the table, and where a row came from follows
// from its home (the partition) and `received` (the place in it). Dead letters, which people do follow back, carry them.
//
// Columns go from Arrow to the wire without becoming rows or Go values on the way.
package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/chpool"
	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/semaphore"

	"hearthline/flow/secret"
)

// Sink stores streams in a ClickHouse database. Make one with New.
type Sink struct {
	// Address is host:port of the server's native protocol.
	Address string `yaml:"address"`
	// Database holds the tables; it is made when missing.
	Database string `yaml:"database"`
	// User writes, and makes tables in Database and adds columns to them; where all are there, INSERT and SELECT are enough.
	User string `yaml:"user"`
	// PasswordEnv and PasswordFile name where the password stands: an environment variable, or a file.
	PasswordEnv  string `yaml:"password_env"`
	PasswordFile string `yaml:"password_file"`
	// TLS encrypts the connection; the server's certificate is checked against the system's authorities, or those of TLSCA.
	TLS bool `yaml:"tls"`
	// TLSCA is a PEM file of the authorities that are trusted instead; TLSCertificate and TLSKey are PEM files of this client's own certificate,
	// for servers that ask for one. All are read again for each connection.
	TLSCA          string `yaml:"tls_ca"`
	TLSCertificate string `yaml:"tls_certificate"`
	TLSKey         string `yaml:"tls_key"`
	// TLSServerName is the name that must stand in the server's certificate, where it is not its address.
	TLSServerName string `yaml:"tls_server_name"`
	// Tables says into which table a stream goes, for streams that do not go into the table of their own name.
	Tables map[string]string `yaml:"tables"`
	// RetentionDays is how long rows are kept, in days by event time; 0 is for ever. Rollups, latest states and
	// alerts are kept for ever. Whoever sets it needs ALTER TTL, by which rows can be made to go at once.
	RetentionDays int `yaml:"retention_days"`
	// FlushRows and FlushWait are the wish about ranges: cut at so many rows, or when the first row has waited so long.
	FlushRows int64         `yaml:"flush_rows"`
	FlushWait time.Duration `yaml:"flush_wait"`
	// Connections is how many inserts may run at once; more wait for their turn.
	Connections int `yaml:"connections"`

	// Password is the password itself, for callers that made it; no setting, since plans are no place for secrets.
	Password string `yaml:"-"`
	// Keeper, with KeeperPassword, is the user that sets RetentionDays; "" is User.
	Keeper         string `yaml:"-"`
	KeeperPassword string `yaml:"-"`
	// Logger hears of a server that is gone or back, and of tables made or changed.
	Logger *slog.Logger `yaml:"-"`

	answer  time.Duration // how long one insert may take
	inserts *chpool.Pool
	// inserting is of insertBytesMax bytes.
	inserting *semaphore.Weighted

	queries driver.Conn
	plans   plans
	down    atomic.Bool
	stats   counters
	closing sync.Once
}

// AddressEmbedded stands for the server that `up` starts and whose address it puts in its place.
const AddressEmbedded = "embedded"

// New returns a sink with the defaults.
func New() *Sink {
	return &Sink{
		Address:     "127.0.0.1:9000",
		Database:    "hearthline",
		User:        "default",
		FlushRows:   500_000,
		FlushWait:   time.Second,
		Connections: 8,
		Logger:      slog.New(slog.DiscardHandler),
		answer:      answerWait,
		inserting:   semaphore.NewWeighted(insertBytesMax),
	}
}

// Flush says how large ranges should be: a few large inserts suit ClickHouse better than many small ones.
func (s *Sink) Flush() (int64, time.Duration) { return s.FlushRows, s.FlushWait }

const (
	dialWait   = 5 * time.Second
	answerWait = 5 * time.Minute        // for one answer: an insert may wait for merges
	cancelStep = 250 * time.Millisecond // ch-go looks at its context between reads, each of which lasts so long at most
	retryFirst = 200 * time.Millisecond
	retryMost  = 5 * time.Second
	maxInserts = 64
	maxQueries = 4
)

// Open connects and brings the tables up to date. A server that is not there yet is waited for until ctx ends.
func (s *Sink) Open(ctx context.Context) error {
	if err := s.checkSettings(); err != nil {
		return err
	}
	if s.Address == AddressEmbedded {
		return errors.New("clickhouse: the address is \"embedded\", a server that only `hearthline up` starts; set it to host:port of a ClickHouse server")
	}
	opt, err := s.options()
	if err != nil {
		return err
	}
	told := false
	var last error // what was wrong, when ctx ends the waiting
	attempt := func() (struct{}, error) {
		err := s.open(ctx, opt)
		if err == nil || ctx.Err() != nil {
			return struct{}{}, err
		}
		last = err
		if fatal(err) {
			return struct{}{}, backoff.Permanent(err)
		}
		if !told {
			told = true
			s.Logger.Warn("clickhouse: not ready; waiting for it", "address", s.Address, "error", err)
		}
		return struct{}{}, err
	}
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = retryFirst, retryMost
	if _, err := backoff.Retry(ctx, attempt, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(0)); err != nil {
		if last != nil && !errors.Is(err, last) {
			err = fmt.Errorf("%w, while: %w", err, last)
		}
		return fmt.Errorf("clickhouse at %s: %w%s", s.Address, err, hint(err))
	}
	if told {
		s.Logger.Info("clickhouse: ready", "address", s.Address)
	}
	return nil
}

// open is one attempt: the database, the tables, the pool of inserting connections.
func (s *Sink) open(ctx context.Context, opt clickhouse.Options) error {
	first := opt
	first.Auth.Database = "" // ours may not be there yet
	conn, err := clickhouse.Open(&first)
	if err != nil {
		return err
	}
	defer conn.Close()
	// Only where there is none: who fills tables that are there needs no right to make them.
	var there uint64
	if err := conn.QueryRow(ctx, "SELECT count() FROM system.databases WHERE name = ?", s.Database).Scan(&there); err != nil {
		return fmt.Errorf("look for database %s: %w", s.Database, err)
	}
	if there == 0 {
		// Its definition is not among those of its tables.
		if err := checkRoom(ctx, conn); err != nil {
			return fmt.Errorf("make database %s: %w", s.Database, err)
		}
		if err := conn.Exec(ctx, "CREATE DATABASE IF NOT EXISTS "+quote(s.Database)); err != nil {
			return fmt.Errorf("make database %s: %w", s.Database, err)
		}
	}
	queries, err := clickhouse.Open(&opt)
	if err != nil {
		return err
	}
	if err := s.migrate(ctx, queries); err != nil {
		queries.Close()
		return err
	}
	inserts, err := chpool.Dial(ctx, s.insertOptions(opt))
	if err != nil {
		queries.Close()
		return err
	}
	s.queries, s.inserts = queries, inserts
	return nil
}

// Close gives the connections back.
func (s *Sink) Close() error {
	var err error
	s.closing.Do(func() {
		if s.inserts != nil {
			s.inserts.Close()
		}
		if s.queries != nil {
			err = s.queries.Close()
		}
	})
	return err
}

func (s *Sink) checkSettings() error {
	if strings.ContainsAny(s.Address, "@/") { // and do not repeat it: such an address may hold a password
		return errors.New("clickhouse: address: it is a URL, or holds a user; want host:port, and user and password_env as settings of their own")
	}
	if _, _, err := net.SplitHostPort(s.Address); err != nil && s.Address != AddressEmbedded {
		return fmt.Errorf("clickhouse: address %q: %w; want host:port of the native protocol, port 9000, or 9440 with tls", s.Address, err)
	}
	switch {
	case s.Database == "":
		return errors.New("clickhouse: no database set")
	case s.RetentionDays < 0:
		return fmt.Errorf("clickhouse: retention_days is %d; want 0 (for ever) or more", s.RetentionDays)
	case s.FlushRows < 1 || s.FlushWait <= 0:
		return fmt.Errorf("clickhouse: flush_rows %d and flush_wait %v must be above 0", s.FlushRows, s.FlushWait)
	case s.Connections < 1 || s.Connections > maxInserts:
		return fmt.Errorf("clickhouse: connections is %d; want 1 to %d", s.Connections, maxInserts)
	case s.PasswordEnv != "" && s.PasswordFile != "":
		return errors.New("clickhouse: password_env and password_file are both set; set one")
	}
	for stream, table := range s.Tables {
		if table == "" || tableName(table) != table {
			return fmt.Errorf("clickhouse: tables: stream %q goes into %q, which is no name for a table; use letters, digits and _", stream, table)
		}
	}
	return nil
}

// password reads the secret from where the settings say it is.
func (s *Sink) password() (string, error) {
	if s.PasswordEnv == "" && s.PasswordFile == "" {
		return s.Password, nil
	}
	password, err := secret.Read(s.PasswordEnv, s.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("clickhouse: password_env, password_file: %w", err)
	}
	return password, nil
}

func (s *Sink) options() (clickhouse.Options, error) {
	password, err := s.password()
	if err != nil {
		return clickhouse.Options{}, err
	}
	opt := clickhouse.Options{
		Addr:         []string{s.Address},
		Auth:         clickhouse.Auth{Database: s.Database, Username: s.User, Password: password},
		DialTimeout:  dialWait,
		ReadTimeout:  answerWait,
		MaxOpenConns: maxQueries,
		MaxIdleConns: maxQueries,
		ClientInfo:   clickhouse.ClientInfo{Products: []struct{ Name, Version string }{{Name: "hearthline"}}},
	}
	if _, err := s.tlsConfig(); err != nil { // before the first connection: what is wrong here no waiting mends
		return clickhouse.Options{}, err
	}
	opt.DialContext = func(ctx context.Context, address string) (net.Conn, error) { return s.dial(ctx, "tcp", address) }
	return opt, nil
}

func (s *Sink) insertOptions(opt clickhouse.Options) chpool.Options {
	return chpool.Options{
		MaxConns: int32(s.Connections),
		ClientOptions: ch.Options{
			Address: s.Address, Database: s.Database, User: opt.Auth.Username, Password: opt.Auth.Password,
			ClientName: "hearthline", Compression: ch.CompressionLZ4, Dialer: dialer{s},
			DialTimeout: dialWait, HandshakeTimeout: dialWait, ReadTimeout: cancelStep,
		},
	}
}

// quote makes s an identifier of ClickHouse's SQL.
func quote(s string) string {
	return "`" + strings.NewReplacer("\\", "\\\\", "`", "\\`").Replace(s) + "`"
}
