package apache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sourcegraph/conc"
)

// fakeMaven puts a program in Maven's place that notes each call, takes its time, and then does what is said.
func fakeMaven(t *testing.T, then string) (calls func() int) {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\necho called >>" + dir + "/calls\nfor a; do case $a in -DoutputDirectory=*) out=${a#*=};; esac; done\n" +
		"sleep 0.3\n" + then + "\n"
	if err := os.WriteFile(filepath.Join(dir, "mvn"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	return func() int {
		b, err := os.ReadFile(filepath.Join(dir, "calls"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return strings.Count(string(b), "called")
	}
}

// TestFetchOnce: those who fetch at once wait for the first; what a killed process left behind is no obstacle, and is
// not part of what they get.
func TestFetchOnce(t *testing.T) {
	calls := fakeMaven(t, "echo jar >$out/kafka.jar")
	cache := t.TempDir()
	var work conc.WaitGroup
	dirs := make([]string, 4)
	for i := range dirs {
		work.Go(func() {
			dir, err := Fetch(t.Context(), cache)
			if err != nil {
				t.Error(err)
			}
			dirs[i] = dir
		})
	}
	work.Wait()
	for _, dir := range dirs {
		if dir != dirs[0] {
			t.Errorf("two directories: %s and %s", dir, dirs[0])
		}
	}
	if _, err := os.Stat(filepath.Join(dirs[0], "kafka.jar")); err != nil || calls() != 1 {
		t.Errorf("%v; Maven was called %d times, want once", err, calls())
	}
	// As if killed while fetching: half of it, under the name it has until it is whole.
	if err := os.Rename(dirs[0], dirs[0]+".part"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dirs[0]+".part", "half.jar"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	dir, err := Fetch(t.Context(), cache)
	if err != nil || calls() != 2 {
		t.Fatalf("%v; Maven was called %d times, want twice", err, calls())
	}
	if _, err := os.Stat(filepath.Join(dir, "half.jar")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was left behind is part of the jars: %v", err)
	}
}

// TestFetchFails: the error says what Maven said, and nothing has the name of the jars.
func TestFetchFails(t *testing.T) {
	calls := fakeMaven(t, "echo half >$out/kafka.jar; echo 'no route to repo.maven.apache.org'; exit 1")
	cache := t.TempDir()
	for want := 1; want <= 2; want++ {
		_, err := Fetch(t.Context(), cache)
		if err == nil || !strings.Contains(err.Error(), "no route to repo.maven.apache.org") || !strings.Contains(err.Error(), "settings.xml") {
			t.Errorf("%v", err)
		}
		if calls() != want {
			t.Errorf("Maven was called %d times, want %d", calls(), want)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := Fetch(t.Context(), cache); !errors.Is(err, ErrMissing) {
		t.Errorf("without Maven: %v", err)
	}
	t.Setenv("JAVA_HOME", "")
	if err := New().Run(context.Background()); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "Java 17") {
		t.Errorf("without Java: %v", err)
	}
}
