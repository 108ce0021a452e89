package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hearthline/blobs"
)

// Limits of what a process may take and say, generous: a run is some ten thousand rows.
const (
	memoryMaxMB = 400  // of a role, at its peak
	linesMax    = 3000 // of a role's log, all lives together
)

// outcome is what a run came to.
type outcome struct {
	acknowledged int64
	excused      int // acknowledged readings that are dead letters and not readings
	windows      int
	everywhere   int // windows, or numbers, over all homes
	overdue      int // rows that were late for these
	alerts       int
	compared     map[string]int // rows of each stream that the undisturbed run has
	rows         int            // of all streams
	dead         int
	lives        int
	peakMB       int
	wrong        []string
}

func (o *outcome) wrongf(format string, args ...any) {
	o.wrong = append(o.wrong, fmt.Sprintf(format, args...))
}

// check compares what is stored with what was acknowledged and with an undisturbed run.
func (w *world) check(ctx context.Context, o *outcome) error {
	c, err := w.client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	want, err := w.undisturbed(ctx, c)
	if err != nil {
		return fmt.Errorf("undisturbed run: %w", err)
	}
	if w.inSQL && w.stepped {
		again, err := w.asItStands(ctx, c)
		if err != nil {
			return fmt.Errorf("%s as it stands: %w", byMetric, err)
		}
		maps.Copy(want, again)
	}
	store, err := blobs.Dir(filepath.Join(w.data, "parquet"))
	if err != nil {
		return err
	}
	var readings rows
	dead, compared := rows{}, map[string]int{}
	for _, stream := range kept(w.plan) {
		files, err := fromParquet(ctx, store, stream)
		if err != nil {
			o.wrongf("Parquet, %s: %v", stream, err)
			continue
		}
		table, err := w.fromClickHouse(ctx, stream, w.plan.Streams[stream].Schema)
		if err != nil {
			return err
		}
		for _, d := range differences("an undisturbed run", want[stream], "ClickHouse", table) {
			o.wrongf("%s: %s", stream, d)
		}
		for _, d := range differences("an undisturbed run", want[stream], "Parquet", files) {
			o.wrongf("%s: %s", stream, d)
		}
		o.rows += table.total()
		if compared[stream] = want[stream].total(); compared[stream] == 0 && slices.Contains(always(), stream) {
			o.wrongf("%s: the undisturbed run has no row either, so nothing is compared", stream)
		}
		switch {
		case stream == "readings":
			readings = table
		case stream == "alerts":
			w.checkAlerts(o, table)
		case stream == everywhere:
			o.everywhere = table.total()
		case stream == "overdue":
			o.overdue = table.total()
		case stream == "features":
			o.windows = table.total()
		case strings.HasSuffix(stream, ".dead"):
			o.dead += table.total()
			for k, n := range table {
				dead[k] += n
			}
		}
	}
	o.compared = compared
	w.checkAcknowledged(o, readings, dead)
	return w.checkFiles(store, o)
}

// always are the streams of which every run has rows; alerts, late rows and dead letters come in some only (see tally).
func always() []string {
	return []string{"readings", "features", "scores", byMetric, everywhere}
}

// readingKey is what names a reading for ever.
type readingKey struct {
	home, device, metric string
	seq                  string
}

// checkAcknowledged holds the readings against what the hubs were told: each acknowledged one is there once or is a dead
// letter, and there is nothing else.
func (w *world) checkAcknowledged(o *outcome, readings, dead rows) {
	there := map[readingKey]int{}
	for row, n := range readings {
		f := fields(row)
		there[readingKey{f["home"], f["device"], f["metric"], f["seq"]}] += n
	}
	letters := map[readingKey]bool{}
	for row := range dead {
		letters[letter(fields(row)["body"])] = true
	}
	var missing, twice, never int
	sent := map[readingKey]bool{}
	for r := range w.homes.Stored() {
		id := readingKey{r.Home, r.Device, r.Metric, fmt.Sprint(r.Seq)}
		sent[id] = true
		switch n := there[id]; {
		case n == 0 && letters[id]:
			o.excused++
		case n == 0:
			if missing++; missing <= 5 {
				o.wrongf("lost: %+v was acknowledged and is not in ClickHouse", id)
			}
		case n > 1:
			if twice++; twice <= 5 {
				o.wrongf("doubled: %+v is %d times in ClickHouse", id, n)
			}
		}
	}
	for id := range there {
		if !sent[id] {
			if never++; never <= 5 {
				o.wrongf("invented: %+v is in ClickHouse and was never acknowledged as good", id)
			}
		}
	}
	if missing+twice+never > 0 {
		o.wrongf("of %d acknowledged readings %d are lost and %d doubled; %d were never sent", len(sent), missing, twice, never)
	}
	if o.acknowledged != int64(len(sent)) {
		o.wrongf("the hubs count %d acknowledged readings and name %d", o.acknowledged, len(sent))
	}
}

func fields(row string) map[string]string {
	m := map[string]string{}
	for cell := range strings.SplitSeq(row, "\x1f") {
		name, value, _ := strings.Cut(cell, "=")
		m[name] = value
	}
	return m
}

// letter is the reading that a dead letter's body holds.
func letter(body string) readingKey {
	var row struct {
		Home, Device, Metric string
		Seq                  json.Number
	}
	d := json.NewDecoder(strings.NewReader(body))
	if err := d.Decode(&row); err != nil {
		return readingKey{}
	}
	return readingKey{row.Home, row.Device, row.Metric, row.Seq.String()}
}

// checkFiles holds that whoever looks for *.parquet in the folder sees what readers of the store see, and whole files only.
func (w *world) checkFiles(store blobs.Store, o *outcome) error {
	listed := map[string]bool{}
	infos, err := store.List(context.Background(), "")
	if err != nil {
		return err
	}
	for _, info := range infos {
		listed[info.Name] = true
	}
	root := filepath.Join(w.data, "parquet")
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".parquet") {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		switch {
		case err != nil:
			return err
		case !listed[filepath.ToSlash(name)]:
			o.wrongf("%s can be seen beside the Parquet files and is none of the store's", name)
		case len(b) < 12 || !bytes.HasPrefix(b, []byte("PAR1")) || !bytes.HasSuffix(b, []byte("PAR1")):
			o.wrongf("%s is half a Parquet file", name)
		}
		return nil
	})
}

// shutDown tells every process to stop, and holds it to what it may have taken.
func (w *world) shutDown(o *outcome) {
	w.mu.Lock()
	procs := w.procs
	w.mu.Unlock()
	ended := make(chan error, len(procs))
	n := 0
	for _, p := range procs {
		if p.name == "broker" {
			continue // last: the others say goodbye to it
		}
		n++
		go func() { ended <- p.end(40 * time.Second) }()
	}
	for range n {
		if err := <-ended; err != nil {
			o.wrongf("%v", err)
		}
	}
	for _, p := range procs {
		p.mu.Lock()
		o.lives += p.lives
		if p.name != "broker" {
			o.peakMB = max(o.peakMB, p.peakKB>>10)
			w.logf("%s took %d MB", p.name, p.peakKB>>10)
			if p.peakKB>>10 > memoryMaxMB {
				o.wrongf("%s took %d MB, at most %d is allowed", p.name, p.peakKB>>10, memoryMaxMB)
			}
		}
		for _, exit := range p.exits {
			w.logf("%s ended by itself: %s", p.name, exit)
			if strings.Contains(exit, "exit status 2") {
				o.wrongf("%s ended by itself: %s", p.name, exit) // a panic, or a refusal to start
			}
		}
		p.mu.Unlock()
		w.checkLog(p, o)
	}
}

func (w *world) checkLog(p *process, o *outcome) {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return // never started
	}
	if n := bytes.Count(b, []byte("\n")); n > linesMax {
		o.wrongf("%s wrote %d lines to its log, at most %d are allowed", p.name, n, linesMax)
	}
	for _, word := range []string{"panic:", "DATA RACE", "fatal error:"} {
		if bytes.Contains(b, []byte(word)) {
			o.wrongf("%s: its log holds %q", p.name, word)
		}
	}
}
