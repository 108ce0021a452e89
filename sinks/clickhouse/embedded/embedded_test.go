package embedded

import (
	"context"
	"encoding/xml"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fakeVerb makes the test binary a stand-in for an installed ClickHouse: see TestInstalledBinaryGoesFirst.
const fakeVerb = "test-clickhouse"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case Verb:
			os.Exit(Main(os.Args[2:]))
		case parentVerb:
			os.Exit(parent(os.Args[2:]))
		case fakeVerb:
			os.Exit(fakeClickHouse(os.Args[2:]))
		}
	}
	os.Exit(m.Run())
}

// fakeClickHouse reads the configuration and answers any query with 1 on the doors that it names.
func fakeClickHouse(args []string) int {
	if len(args) != 2 || args[0] != "server" {
		fmt.Fprintln(os.Stderr, "want: server --config-file=FILE, have:", args)
		return 1
	}
	b, err := os.ReadFile(strings.TrimPrefix(args[1], "--config-file="))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var conf struct {
		Host string `xml:"listen_host"`
		HTTP string `xml:"http_port"`
		TCP  string `xml:"tcp_port"`
	}
	if err := xml.Unmarshal(b, &conf); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	l, err := net.Listen("tcp", conf.Host+":"+conf.TCP)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer l.Close()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	server := http.Server{Addr: conf.Host + ":" + conf.HTTP, ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "1")
	})}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
