package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"hearthline/cli/clitest"
)

// change is one replacement in a source file, by which a binary differs from the product.
type change struct {
	file     string // below the module's folder
	old, new string // old stands in the file once
}

// named makes each process tell Kafka its own name, by which a proxy knows its clients apart.
var named = change{"streams/streams.go", `ClientID:        "hearthline",`, `ClientID:        chaosName(),`}

const namedFile = `package streams

import "os"

func chaosName() string { return os.Getenv("HEARTHLINE_CHAOS_NAME") }
`

// stepped makes every use of the wall clock that outlives a process (the gateway's arrival clock, the names of checkpoints,
// the timestamps of messages) add the seconds that the file in HEARTHLINE_CHAOS_CLOCK holds. The monotonic clock stays
// as it is, as it does when an operator or NTP steps a real clock.
var stepped = []change{
	{"ingest/gateway.go", "Now:          time.Now,", "Now:          chaosNow,"},
	{"pipeline/run/runner.go", "now: time.Now,", "now: chaosNow,"},
	{"streams/streams.go", "now: time.Now}", "now: chaosNow}"},
}

// steppedFile is added to each of their packages.
const steppedFile = `package %s

import (
	"os"
	"strconv"
	"strings"
	"time"
)

func chaosNow() time.Time {
	b, err := os.ReadFile(os.Getenv("HEARTHLINE_CHAOS_CLOCK"))
	if err != nil {
		return time.Now()
	}
	seconds, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return time.Now()
	}
	return time.Unix(0, time.Now().UnixNano()).Add(time.Duration(seconds) * time.Second)
}
`

var builds struct {
	sync.Mutex
	dir  string
	made map[string]string // name → binary
}

// build makes the product's binary with a clock that can be stepped, and with changes.
func build(name string, changes ...change) (string, error) {
	builds.Lock()
	defer builds.Unlock()
	if binary := builds.made[name]; binary != "" {
		return binary, nil
	}
	root, err := clitest.Root()
	if err != nil {
		return "", err
	}
	if builds.dir == "" {
		if builds.dir, err = os.MkdirTemp("", "hearthline-chaos-bin-"); err != nil {
			return "", err
		}
		builds.made = map[string]string{}
	}
	overlay := map[string]string{}
	put := func(file, text string) error {
		copied := filepath.Join(builds.dir, fmt.Sprintf("%s-%d.go", name, len(overlay)))
		overlay[file] = copied
		return os.WriteFile(copied, []byte(text), 0o600)
	}
	texts := map[string]string{}
	for _, c := range append(append([]change{named}, stepped...), changes...) {
		file := filepath.Join(root, c.file)
		if texts[file] == "" {
			text, err := os.ReadFile(file)
			if err != nil {
				return "", err
			}
			texts[file] = string(text)
		}
		if n := strings.Count(texts[file], c.old); n != 1 {
			return "", fmt.Errorf("%s holds %d times what is to be changed, want once: %q", c.file, n, c.old)
		}
		texts[file] = strings.Replace(texts[file], c.old, c.new, 1)
	}
	for _, c := range stepped {
		dir := filepath.Dir(filepath.Join(root, c.file))
		texts[filepath.Join(dir, "chaos_clock.go")] = fmt.Sprintf(steppedFile, filepath.Base(dir))
	}
	texts[filepath.Join(root, "streams", "chaos_name.go")] = namedFile
	for file, text := range texts {
		if err := put(file, text); err != nil {
			return "", err
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		return "", err
	}
	file := filepath.Join(builds.dir, name+".json")
	if err := os.WriteFile(file, list, 0o600); err != nil {
		return "", err
	}
	binary := filepath.Join(builds.dir, "hearthline-"+name)
	cmd := exec.Command("go", "build", "-overlay", file, "-o", binary, ".")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	builds.made[name] = binary
	return binary, nil
}
