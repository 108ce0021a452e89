package python

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// requirementsFile names what a stage needs beside pyarrow, one package a line, as pip reads it.
const requirementsFile = "requirements.txt"

// always is what every stage has.
const always = "pyarrow>=15,<27"

// interpreter is the Python that a stage's workers run on: the one of this machine if it has all that is needed, else one of an
// environment in the cache, which is made once for the same requirements.
func (w *Workers) interpreter(ctx context.Context, folder string) (string, error) {
	needs, err := os.ReadFile(filepath.Join(folder, requirementsFile)) // #nosec G304 -- a stage of the operator
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if w.Debugger != "" {
		needs = append(needs, "\ndebugpy>=1.8,<2\n"...)
	}
	python, version, err := w.installed(ctx)
	if err != nil {
		return "", err
	}
	if len(strings.TrimSpace(string(needs))) == 0 && exec.CommandContext(ctx, python, "-c", "import pyarrow").Run() == nil { // #nosec G204 -- the operator's interpreter
		return python, nil
	}
	return w.environment(ctx, python, version, string(needs))
}

// installed is the Python of this machine, and all that it says of its version.
func (w *Workers) installed(ctx context.Context) (python, version string, err error) {
	if python, err = exec.LookPath(w.Interpreter); err != nil {
		return "", "", fmt.Errorf("%s is not on the PATH: install Python 3.10 or later", w.Interpreter)
	}
	said, err := exec.CommandContext(ctx, python, "-VV").Output() // #nosec G204 -- the operator's interpreter
	if err != nil {
		return "", "", fmt.Errorf("%s -VV: %w", python, err)
	}
	return python, string(said), nil
}

func (w *Workers) environment(ctx context.Context, python, version, needs string) (string, error) {
	sum := sha256.Sum256([]byte(python + "\x00" + version + "\x00" + always + "\x00" + needs))
	dir := filepath.Join(ensured(filepath.Join(w.Cache, "python")), "environment-"+hex.EncodeToString(sum[:8]))
	made, mark := filepath.Join(dir, "bin", "python"), filepath.Join(dir, "whole")
	whole := func() bool {
		_, err := os.Stat(mark) // #nosec G703 -- in the operator's cache, by a hash
		return err == nil
	}
	if whole() {
		return made, nil
	}
	// Environments hold their own path: one that is moved does not work. Who is not done leaves no mark, and the next begins anew.
	unlock, err := lock(dir + ".lock")
	if err != nil {
		return "", fmt.Errorf("python environment: %w", err)
	}
	defer unlock()
	if whole() {
		return made, nil
	}
	if err := w.failedJustNow(dir); err != nil {
		return "", err
	}
	w.Logger.Info("python: an environment is made; this is done once", "folder", dir, "packages", strings.Join(strings.Fields(always+" "+needs), " "))
	if err := os.RemoveAll(dir); err != nil { // #nosec G703 -- likewise
		return "", fmt.Errorf("python environment: %w", err)
	}
	if err := quietly(ctx, python, "-m", "venv", dir); err != nil {
		return "", fmt.Errorf("python environment: %w (on Debian: apt-get install python3-venv)", err)
	}
	list := filepath.Join(dir, requirementsFile)
	if err := os.WriteFile(list, []byte(always+"\n"+needs+"\n"), 0o600); err != nil { // #nosec G703 -- likewise
		return "", fmt.Errorf("python environment: %w", err)
	}
	if err := quietly(ctx, made, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-q", "-r", list); err != nil {
		err = fmt.Errorf("%s cannot be installed: %w", requirementsFile, err)
		if ctx.Err() != nil {
			return "", err
		}
		w.failed.Lock()
		defer w.failed.Unlock()
		if w.failed.by == nil {
			w.failed.by = map[string]failedAt{}
		}
		w.failed.by[dir] = failedAt{err, time.Now()}
		return "", err
	}
	return made, os.WriteFile(mark, nil, 0o600) // #nosec G703 -- likewise
}

// failedAt is why and when an environment could not be made.
type failedAt struct {
	err error
	at  time.Time
}

// installAgain is how long what could not be installed is not tried again: lint asks for it several times at once, and batches that wait all the time.
const installAgain = 10 * time.Second

// failedJustNow is why an environment could not be made a moment ago.
func (w *Workers) failedJustNow(dir string) error {
	w.failed.Lock()
	defer w.failed.Unlock()
	if f := w.failed.by[dir]; time.Since(f.at) < installAgain {
		return f.err
	}
	return nil
}

// quietly runs a command; its error has the last lines that it wrote.
func quietly(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput() // #nosec G204 -- the operator's interpreter
	if err == nil {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return fmt.Errorf("%w: %s", err, strings.Join(lines[max(0, len(lines)-4):], " | "))
}

// printOf is a hash of files.
func printOf(names []string, read func(string) ([]byte, error)) string {
	sum := sha256.New()
	for _, name := range names {
		data, err := read(name)
		fmt.Fprintf(sum, "%s %d %v\n", name, len(data), err)
		sum.Write(data)
	}
	return hex.EncodeToString(sum.Sum(nil))
}
