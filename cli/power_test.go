package cli

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearthline/blobs/disktest"
	"hearthline/cli/clitest"
	"hearthline/sinks/parquet"
)

// With durability: power, the whole product loses its power in mid-flow and goes on from what is on the disk.
// Every row that was acknowledged to a device is in ClickHouse and in Parquet, once.
func TestPowerCut(t *testing.T) {
	disk := disktest.New(t, 2048)
	i := clitest.New(t)
	i.Data = filepath.Join(disk.Dir, "data")
	text := readPlan(t, i)
	i.Write(regexp.MustCompile(`(?m)^durability: .*$`).ReplaceAllString(text, "durability: power"))
	homes := i.Homes(10, 250, 0)
	homes.History, homes.Interval = 0, 60*time.Millisecond
	up := i.Up("--no-homes")
	syscall.Sync() // passwords and certificates are made once, long before
	ended := clitest.Play(t.Context(), homes)
	for range cuts {
		before, deadline := homes.Stats().Acknowledged, time.Now().Add(2*time.Minute)
		for homes.Stats().Acknowledged < before+5000 {
			if time.Now().After(deadline) {
				t.Fatalf("only %d rows acknowledged", homes.Stats().Acknowledged-before)
			}
			time.Sleep(10 * time.Millisecond)
		}
		disk.Cut()
		i.KillEngine(up)
		up.Kill()
		disk.Restore()
		for _, addr := range []string{i.ClickHouseHTTP, i.ClickHouseTCP} { // the engine takes a while to die on a disk that is gone
			i.Eventually("port "+addr, "free", func() string {
				l, err := net.Listen("tcp", addr)
				if err != nil {
					return err.Error()
				}
				l.Close()
				return "free"
			})
		}
		i.Data = filepath.Join(disk.Dir, "data")
		up = i.Up("--no-homes")
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	up.Stop()
	want, err := homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	if files, err := parquet.Count(t.Context(), i.ParquetStore(), "readings"); err != nil || files.Rows != want {
		t.Errorf("%d rows in Parquet, %d acknowledged; %v", files.Rows, want, err)
	}
	up = i.Up("--no-homes")
	for _, sql := range []string{"SELECT count() FROM readings", "SELECT uniqExact(home, device, metric, seq) FROM readings"} {
		if got := i.Query(sql)[0]; got != strconv.FormatInt(want, 10) {
			t.Errorf("%s gives %s, want %d", sql, got, want)
		}
	}
	up.Stop()
	t.Logf("%d rows, %d reconnects", want, homes.Stats().Reconnects)
}

// cuts may be raised; one takes half a minute.
const cuts = 1

func readPlan(t *testing.T, i *clitest.Installation) string {
	t.Helper()
	raw, err := os.ReadFile(i.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	b := string(raw)
	if !strings.Contains(b, "\ndurability: ") {
		t.Fatal("pipeline.yaml does not speak of durability")
	}
	return b
}
