package deploy

import (
	"bytes"
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"text/template"

	"hearthline/pipeline"
)

// LockFile is the name of the file beside pipeline.yaml by which a role without a Python proves stages that need one.
const LockFile = "stages.lock"

// What a file of a stage may have, and all of them together: an image is built from what is rendered.
const (
	stageFileMax  = 64 << 20
	stageFilesMax = 512 << 20
)

//go:embed stages.Dockerfile
var stagesDockerfile string

// Image renders what the image is built from that runs stages in Python and SQL: a Dockerfile, and the stages beside it. Environments are made
// when it is built, so that its roles start without network, as no root, on a root file system that cannot be written. Other roles
// run the static image, which stays as it is.
//
// The error is [Findings] when the plan has no such stage.
func Image(plan *pipeline.Plan, s *Settings, stages fs.FS) ([]File, error) {
	r := newRenderer(plan, s, "compose")
	sql, need := false, false
	for _, one := range r.roles {
		need = need || one.workers
	}
	if !need {
		r.find(pipeline.Pos{}, "stages", "build deploy/Dockerfile alone", "no stage runs in Python or SQL: there is no other image to build")
		return nil, r.err()
	}
	for _, one := range plan.Spec.Stages {
		sql = sql || one.SQL != nil || one.Trial != nil && one.Trial.SQL != nil
	}
	files, err := stageFiles(stages)
	if err != nil {
		return nil, fmt.Errorf("stages of the image: %w", err)
	}
	var text bytes.Buffer
	err = template.Must(template.New("").Parse(stagesDockerfile)).Execute(&text, map[string]any{
		"Base": cmp.Or(s.Image, defaultImage), "User": userID, "Data": dataDir, "Binary": binary, "Ops": opsPort, "SQL": sql, "Stages": len(files) > 0,
	})
	return append([]File{{"Dockerfile", text.Bytes()}}, files...), err
}

// stageFiles are the folders of stages in Python and SQL, without their cases.
func stageFiles(stages fs.FS) (files []File, err error) {
	entries, err := fs.ReadDir(stages, ".")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	total := int64(0)
	for _, e := range entries {
		if !isStage(stages, e.Name()) {
			continue
		}
		err := fs.WalkDir(stages, e.Name(), func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if skip := strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"cases", "__pycache__"}, d.Name()); skip && d.IsDir() {
				return fs.SkipDir
			} else if skip || d.IsDir() {
				return nil
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if total += info.Size(); info.Size() > stageFileMax || total > stageFilesMax {
				return fmt.Errorf("%s: more than %d MB, or all together more than %d MB: have the stage load what is so large from elsewhere", name, stageFileMax>>20, stageFilesMax>>20)
			}
			data, err := fs.ReadFile(stages, name)
			files = append(files, File{path.Join("stages", name), data})
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}

func isStage(stages fs.FS, name string) bool {
	for _, file := range []string{"stage.py", "stage.sql"} {
		if info, err := fs.Stat(stages, path.Join(name, file)); err == nil && info.Mode().IsRegular() {
			return true
		}
	}
	return false
}
