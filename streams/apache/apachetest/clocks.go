package apachetest

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// Clocks are the wall clocks of a cluster's brokers, which can be set while they run, by a library that stands before the C library's.
// The monotonic ones, which timeouts go by, stay as they are, as they do where an operator or NTP sets a real clock.
type Clocks struct{ library, dir string }

//go:embed preload/clock.c
var clockSource []byte

// NewClocks makes the library, and clocks that are right, in dir. It needs Linux and a C compiler.
func NewClocks(dir string, brokers int) (*Clocks, error) {
	c := &Clocks{library: filepath.Join(dir, "clock.so"), dir: dir}
	source := filepath.Join(dir, "clock.c")
	if err := os.WriteFile(source, clockSource, 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.Command("gcc", "-O2", "-shared", "-fPIC", "-fno-builtin", "-o", c.library, source, "-ldl").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("clocks of brokers are set by a library of C, which cannot be made: %w\n%s", err, out)
	}
	for i := range brokers {
		if err := c.Set(i+1, 0); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Env is for [apache.Cluster.Env].
func (c *Clocks) Env(broker int) []string {
	return []string{"LD_PRELOAD=" + c.library, "CLOCK_AHEAD=" + c.file(broker)}
}

func (c *Clocks) file(broker int) string {
	return filepath.Join(c.dir, "clock-broker-"+strconv.Itoa(broker))
}

// Set sets a broker's clock, at once, so far ahead of this machine's; less than 0 is back, 0 is right again.
func (c *Clocks) Set(broker int, ahead time.Duration) error {
	f, err := os.OpenFile(c.file(broker), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(ahead)), 0) // the broker has the file in its memory
	return err
}
