package cli

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// watchedFilesMax bounds how many files of a stage's folder are looked at: a stage is small, what lies beside it by chance may not be.
const watchedFilesMax = 1000

// watch runs the cases of stages (of all, where none is named), and again those of each whose files are saved, until ctx ends.
func (v *testVerb) watch(ctx context.Context, o *options, names []string) error {
	if err := v.look(o); err != nil {
		return err
	}
	for _, name := range names {
		if v.catalog[name] == nil {
			return v.unknown(name)
		}
	}
	ran, last := map[string]string{}, map[string]string{}
	tick := time.NewTicker(fileLookEvery)
	defer tick.Stop()
	for {
		now := v.marks(o.pipeline, names)
		var saved []string
		for name, mark := range now {
			if mark != ran[name] && mark == last[name] { // what is just being written is let be until the next look
				saved = append(saved, name)
			}
		}
		if len(saved) > 0 {
			slices.Sort(saved)
			for _, name := range saved {
				ran[name] = now[name]
			}
			v.again(ctx, o, saved)
		}
		last = now
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// again runs the cases of stages that were saved. What is wrong is said: it is mended in a moment.
func (v *testVerb) again(ctx context.Context, o *options, saved []string) {
	defer func() {
		fmt.Fprintf(v.out, "%s  %s; waiting for what is saved next\n", time.Now().Format(time.TimeOnly), strings.Join(saved, ", "))
	}()
	if err := v.look(o); err != nil {
		fmt.Fprintf(v.out, "FAIL  %s\n", indented(err.Error()))
		return
	}
	for _, name := range saved {
		if _, err := os.Stat(filepath.Join(v.folder, name, "cases")); err != nil {
			continue // a folder of something else, or of a stage to be
		}
		if file := v.newerInGo(name); file != "" {
			fmt.Fprintf(v.out, "      %s is newer than this binary, which has the stage as it was: make build\n", file)
		}
		if _, err := v.stages(ctx, []string{name}); err != nil && !errors.Is(err, errCases) && ctx.Err() == nil {
			fmt.Fprintf(v.out, "FAIL  %s\n", indented(err.Error()))
		}
	}
}

// newerInGo names a Go file of a stage that was saved after this binary was built.
func (v *testVerb) newerInGo(stage string) string {
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	built := markOf(self).changed
	files, _ := filepath.Glob(filepath.Join(v.folder, stage, "*.go")) // the pattern is right
	for _, file := range files {
		if markOf(file).changed.After(built) {
			return file
		}
	}
	return ""
}

// marks says in which state the files of each stage are. pipeline.yaml is part of the state of all that it holds as SQL.
func (v *testVerb) marks(pipeline string, names []string) map[string]string {
	if len(names) == 0 {
		entries, err := os.ReadDir(v.folder)
		if err != nil {
			return nil
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	all := map[string]string{}
	for _, name := range names {
		all[name] = v.markOf(pipeline, name)
	}
	return all
}

func (v *testVerb) markOf(pipeline, stage string) string {
	sum, files := sha256.New(), map[string]bool{}
	note := func(path string) {
		if len(files) < watchedFilesMax {
			files[filepath.Base(path)] = true
			fmt.Fprintf(sum, "%s %+v\n", path, markOf(path))
		}
	}
	_ = filepath.WalkDir(filepath.Join(v.folder, stage), func(path string, d fs.DirEntry, err error) error { // what cannot be read shows when it is run
		switch {
		case err != nil || len(files) >= watchedFilesMax:
			return fs.SkipAll
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "__")):
			return fs.SkipDir
		case !d.IsDir():
			note(path)
		}
		return nil
	})
	if !files["stage.py"] && !files["stage.sql"] && !slices.ContainsFunc(slices.Collect(maps.Keys(files)), func(name string) bool { return strings.HasSuffix(name, ".go") }) {
		note(pipeline)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}
