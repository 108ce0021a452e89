// Package replay has history go through some stages of a pipeline again, beside what runs: files of the Parquet sink, or a
// stretch of a stream. What is made of it goes to Parquet files of its own, and to a ClickHouse database of its own.
//
// A replay is a folder. In it are a broker of its own, checkpoints, the files it makes, and job.json, which says what is replayed
// to the offset. The pipeline's own Kafka is read, at most, and never written. Tasks, checkpoints, sinks and so exactness are the
// runtime's; a replay that was ended, by Ctrl-C or kill -9, goes on from its checkpoints.
//
// job.go is what is written down, parquet.go and kafka.go read history, run.go runs the stages on it, compare.go compares what came of it
// with what the live pipeline has kept.
package replay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"hearthline/flow"
	"hearthline/sinks/parquet"
)

// Job is what a replay does, and has done.
type Job struct {
	Layout   int       `json:"v"`
	Name     string    `json:"name"`
	Begun    time.Time `json:"begun"`
	Finished time.Time `json:"finished,omitzero"`
	// Asked is what the command line said.
	Asked Asked `json:"asked"`
	// Since is the first event time that is replayed, Until the first that is not any more, µs since 1970; 0 is no bound.
	Since flow.Micros `json:"since,omitempty"`
	Until flow.Micros `json:"until,omitempty"`
	// Stages that are run, in the order of the data.
	Stages []string `json:"stages"`
	// Pipeline is the SHA-256 of the pipeline file: a replay cannot go on with another.
	Pipeline   string `json:"pipeline"`
	Version    string `json:"version"` // of the binary that began it
	Partitions int    `json:"partitions"`
	// Inputs are the stretches that are read, by stream.
	Inputs map[string]Stretch `json:"inputs"`
}

// Asked is what whoever began a replay asked for.
type Asked struct {
	From       []string `json:"from"`
	Since      string   `json:"since,omitempty"`
	Until      string   `json:"until,omitempty"`
	Stages     []string `json:"stages,omitempty"`
	Downstream bool     `json:"downstream,omitempty"`
	// Close says that all windows are closed at the end, as if no row came any more.
	Close      bool `json:"close,omitempty"`
	ClickHouse bool `json:"clickhouse,omitempty"`
}

// Equal says whether two ask for the same.
func (a Asked) Equal(b Asked) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && string(x) == string(y)
}

// Stretch is a part of a stream's history, fixed when the replay began.
type Stretch struct {
	// Place is where Parquet files are, a folder or s3://bucket/prefix; "" for a stream on Kafka.
	Place  string                 `json:"place,omitempty"`
	Ranges [][]parquet.RangeFiles `json:"ranges,omitempty"` // of each partition, in the order of the stream
	// First and Next are offsets of a stream on Kafka, of each partition: the first that is read, and the one behind the last.
	First []int64 `json:"first,omitempty"`
	Next  []int64 `json:"next,omitempty"`
}

const (
	jobLayout = 1
	jobFile   = "job.json"
)

// name is also part of the name of a ClickHouse database.
var name = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

// CheckName says what is wrong with the name of a replay.
func CheckName(s string) error {
	if !name.MatchString(s) {
		return fmt.Errorf("a replay is called by 1 to 40 of a-z, 0-9 and _, beginning with a letter; not %q", s)
	}
	return nil
}

// Folder is where all replays of a data folder are.
func Folder(data string) string { return filepath.Join(data, "replays") }

// Dir is the folder of one replay.
func Dir(data, name string) string { return filepath.Join(Folder(data), name) }

// ParquetDir is where a replay keeps the files it makes.
func ParquetDir(dir string) string { return filepath.Join(dir, "parquet") }

// Database is the ClickHouse database that holds a replay's tables.
func Database(name string) string { return "hearthline_replay_" + name }

// Read reads the job of a folder; [fs.ErrNotExist] where there is none.
func Read(dir string) (*Job, error) {
	b, err := os.ReadFile(filepath.Join(dir, jobFile)) // #nosec G304 -- a file of the data folder
	if err != nil {
		return nil, fmt.Errorf("read replay: %w", err)
	}
	j := &Job{}
	if err := json.Unmarshal(b, j); err != nil {
		return nil, fmt.Errorf("read replay: %s: %w; hearthline replay delete removes it", filepath.Join(dir, jobFile), err)
	}
	if j.Layout != jobLayout {
		return nil, fmt.Errorf("replay %s was begun by another version (layout %d, this binary reads %d): delete it, or finish it with that version", j.Name, j.Layout, jobLayout)
	}
	return j, nil
}

// Write keeps a job in its folder.
func (j *Job) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write replay: %w", err)
	}
	j.Layout = jobLayout
	b, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("write replay: %w", err)
	}
	file := filepath.Join(dir, jobFile)
	if err := os.WriteFile(file+".new", b, 0o600); err != nil {
		return fmt.Errorf("write replay: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("write replay: %w", err)
	}
	return nil
}

// List gives the replays of a data folder, the oldest first, and says which cannot be read.
func List(data string) ([]*Job, error) {
	folders, err := os.ReadDir(Folder(data))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list replays: %w", err)
	}
	var jobs []*Job
	var errs []error
	for _, f := range folders {
		j, err := Read(filepath.Join(Folder(data), f.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			errs = append(errs, err)
		default:
			jobs = append(jobs, j)
		}
	}
	slices.SortFunc(jobs, func(a, b *Job) int { return a.Begun.Compare(b.Begun) })
	return jobs, errors.Join(errs...)
}
