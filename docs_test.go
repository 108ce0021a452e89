package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	// link is a Markdown link to a file of the project: [text](path) or [text](path#anchor).
	link = regexp.MustCompile(`\[([^\]]*)\]\(([^)\s]+)\)`)
	// testName is a test that a link's text names, alone, among others or with words beside it: what is promised is only
	// as good as the test behind it.
	testName = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z]\w*`)
	// makeTarget is a `make target` that a document tells its reader to run.
	makeTarget = regexp.MustCompile("`(?:[A-Z_]+=\\S+ )*make ([a-z][a-z0-9-]*)")
)

// Every link of every document leads to a file that is there; a link that names tests leads to the file, or the folder,
// that has each of them; and every `make` target that a document names exists. A promise whose test was renamed or removed fails here.
func TestDocumentsLinkToWhatExists(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]int{}
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "data") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".md") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			target, _, _ := strings.Cut(m[2], "#")
			if target == "" || strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			file := filepath.Join(filepath.Dir(path), filepath.FromSlash(target))
			source, err := testsOf(file)
			if err != nil {
				t.Errorf("%s: the link %s leads nowhere: %v", path, m[0], err)
				continue
			}
			for _, name := range testName.FindAllString(m[1], -1) {
				tests[path]++
				if !strings.Contains(source, "\nfunc "+name+"(") {
					t.Errorf("%s: %s has no %s", path, target, name)
				}
			}
		}
		for _, m := range makeTarget.FindAllStringSubmatch(string(text), -1) {
			if !strings.Contains(string(makefile), "\n"+m[1]+":") {
				t.Errorf("%s: Makefile has no target %q", path, m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	decisions, err := filepath.Glob("docs/decisions/[0-9]*.md")
	if err != nil || len(decisions) == 0 {
		t.Errorf("no decisions: %v", err)
	}
	for i, path := range decisions {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if name, want := filepath.Base(path), fmt.Sprintf("%04d-", i+1); !strings.HasPrefix(name, want) || !strings.HasPrefix(string(text), fmt.Sprintf("# %d. ", i+1)) {
			t.Errorf("%s: the %d. decision; its file and its title begin with that number", path, i+1)
		}
	}
	if tests["docs/guarantees.md"] == 0 {
		t.Error("docs/guarantees.md links to no test")
	}
}

// testsOf gives the text of what a link leads to: a file's, or that of all tests in a folder.
func testsOf(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	files := []string{path}
	if info.IsDir() {
		if files, err = filepath.Glob(filepath.Join(path, "*_test.go")); err != nil {
			return "", err
		}
	}
	var text strings.Builder
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		text.Write(b)
	}
	return text.String(), nil
}
