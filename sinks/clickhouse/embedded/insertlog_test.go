package embedded

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A log agrees with the parts of its table when it has been mended, whatever a death has left of it.
func TestInsertLogIsMended(t *testing.T) {
	const (
		one   = "1\tall_1_1_0\tall_a\n"
		two   = "1\tall_2_2_0\tall_b\n"
		three = "1\t20261103_3_3_1\t20261103_c\n"
	)
	tests := []struct {
		name  string
		parts []string
		logs  []string // by number, from 1
		want  []string
		mended
	}{
		{name: "nothing is wrong", parts: []string{"all_1_1_0", "all_2_2_0"}, logs: []string{one + two}, want: []string{one + two}},
		{name: "a part is missing", parts: []string{"all_1_1_0"}, logs: []string{one + two}, want: []string{one + two + "2\tall_2_2_0\tall_b\n"}, mended: mended{forgotten: 1}},
		{name: "its name was not given", parts: []string{"all_1_1_0", "tmp_insert_all_2_2_0"}, logs: []string{one + two}, want: []string{one + two + "2\tall_2_2_0\tall_b\n"}, mended: mended{forgotten: 1}},
		{name: "merged", parts: []string{"all_1_7_2"}, logs: []string{one + two}, want: []string{one + two}},
		{name: "merged and mutated", parts: []string{"all_1_7_2_9"}, logs: []string{one + two}, want: []string{one + two}},
		{name: "merged, and what was merged", parts: []string{"all_1_7_2", "all_2_2_0", "all_1_1_0"}, logs: []string{one + two}, want: []string{one + two}},
		{name: "merged in part", parts: []string{"all_1_1_0", "all_3_9_2"}, logs: []string{one + two}, want: []string{one + two + "2\tall_2_2_0\tall_b\n"}, mended: mended{forgotten: 1}},
		{name: "the same block of another partition", parts: []string{"all_3_3_0"}, logs: []string{three}, want: []string{three + "2\t20261103_3_3_1\t20261103_c\n"}, mended: mended{forgotten: 1}},
		{name: "dropped", logs: []string{one + "2\tall_1_1_0\tall_a\n"}, want: []string{one + "2\tall_1_1_0\tall_a\n"}},
		{name: "torn", parts: []string{"all_1_1_0"}, logs: []string{one + two[:9]}, want: []string{one}, mended: mended{torn: 9}},
		{name: "zeros", parts: []string{"all_1_1_0"}, logs: []string{one + "\x00\x00\x00"}, want: []string{one}, mended: mended{torn: 3}},
		{name: "a line that is no record", parts: []string{"all_1_1_0"}, logs: []string{one + "3\tx\ty\n" + two}, want: []string{one}, mended: mended{torn: 6 + int64(len(two))}},
		{name: "several files", parts: []string{"all_2_2_0"}, logs: []string{one, two, ""}, want: []string{one, two, "2\tall_1_1_0\tall_a\n"}, mended: mended{forgotten: 1}},
		{name: "no file"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := New(t.TempDir())
			var said strings.Builder
			s.Logger = slog.New(slog.NewTextHandler(&said, nil))
			table := filepath.Join(s.Dir, dataDir, "store", "abc", "abcdef")
			dir := filepath.Join(table, insertLogDir)
			for _, name := range append([]string{insertLogDir}, test.parts...) {
				if err := os.MkdirAll(filepath.Join(table, name), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			// More than ten, so that their order is that of numbers.
			path := func(i int) string { return filepath.Join(dir, fmt.Sprintf("deduplication_log_%d.txt", i+9)) }
			for i, log := range test.logs {
				if err := os.WriteFile(path(i), []byte(log), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // a second time finds nothing to do
				if err := s.mendInsertLogs(); err != nil {
					t.Fatal(err)
				}
				for i, want := range test.want {
					if got, err := os.ReadFile(path(i)); err != nil || string(got) != want {
						t.Errorf("file %d: %q, want %q; %v", i, got, want, err)
					}
				}
			}
			want := ""
			if test.mended != (mended{}) {
				want = fmt.Sprintf("blocks=%d torn_bytes=%d", test.forgotten, test.torn)
			}
			if n := strings.Count(said.String(), "blocks="); !strings.Contains(said.String(), want) || (want == "") != (n == 0) || n > 1 {
				t.Errorf("said %q, want %q once", said.String(), want)
			}
		})
	}
}
