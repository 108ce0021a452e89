package pipeline_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearthline/pipeline"
)

const around = `# the product
pipeline: homes
gateway: {to: raw}   # what comes in
stages:

  # names
  normalize: {from: raw, to: "clean", shadow: {use: normalize2, settings: {a: "}", b: ["x,y", 1]}}} # first
  score:                  # how unlike its past
    use: score_old        # the old one
    from: clean
    to: scores
    # what it is set to
    settings:
      warmup: 10          # readings

    # the new one
    shadow:
      use: score_v2       # better
      settings:           # its own
        warmup: 30        # more

        model: ${MODEL:-x}
  alert:
    canary: {use: alert, percent: 5, settings: {limit: "1"}}
    use: alarm
    from: scores
    to: alerts

  query:
    sql: >
      SELECT * FROM input
      WHERE a
    from: alerts
    to: rows
    shadow:
      sql: |
        SELECT 1

        FROM input -- b
  last:
    from: alerts
    to: ends
    settings: {x: 1}
    shadow: {}
sinks:
  keep: {from: ends}
`

func TestPromotedText(t *testing.T) {
	for stage, want := range map[string]string{
		"normalize": `  normalize: {from: raw, to: "clean", use: normalize2, settings: {a: "}", b: ["x,y", 1]}} # first
`,
		"score": `  score:                  # how unlike its past
    from: clean
    to: scores
    # what it is set to

    # the new one
    use: score_v2       # better
    settings:           # its own
      warmup: 30        # more

      model: ${MODEL:-x}
`,
		"alert": `  alert:
    settings: {limit: "1"}
    from: scores
    to: alerts
`,
		"query": `  query:
    from: alerts
    to: rows
    sql: |
      SELECT 1

      FROM input -- b
`,
		"last": `  last:
    from: alerts
    to: ends
`,
	} {
		t.Run(stage, func(t *testing.T) {
			got, err := pipeline.Promoted([]byte(around), stage)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(replaced(t, stage, want), string(got)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestTextWithoutTrial(t *testing.T) {
	for stage, want := range map[string]string{
		"normalize": `  normalize: {from: raw, to: "clean"} # first
`,
		"score": `  score:                  # how unlike its past
    use: score_old        # the old one
    from: clean
    to: scores
    # what it is set to
    settings:
      warmup: 10          # readings

    # the new one
`,
		"alert": `  alert:
    use: alarm
    from: scores
    to: alerts
`,
	} {
		t.Run(stage, func(t *testing.T) {
			got, err := pipeline.WithoutTrial([]byte(around), stage)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(replaced(t, stage, want), string(got)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
	if _, err := pipeline.WithoutTrial([]byte("stages: {a: {from: x}}\n"), "a"); err == nil {
		t.Error("a stage without a trial")
	}
}

// replaced is the file with other lines for one stage.
func replaced(t *testing.T, stage, lines string) string {
	t.Helper()
	out, in := "", false
	for _, line := range splitLines(around) {
		name := len(line) > 3 && line[:2] == "  " && line[2] >= 'a' && line[2] <= 'z'
		if name || len(line) > 1 && line[0] >= 'a' && line[0] <= 'z' {
			if in && stage == "alert" {
				out += "\n"
			}
			in = name && len(line) > 2+len(stage) && line[2:2+len(stage)+1] == stage+":"
			if in {
				out += lines
			}
		}
		if !in {
			out += line
		}
	}
	return out
}

func splitLines(s string) (lines []string) {
	for len(s) > 0 {
		i := 0
		for i < len(s) && s[i] != '\n' {
			i++
		}
		lines, s = append(lines, s[:i+1]), s[i+1:]
	}
	return lines
}

func FuzzRewrite(f *testing.F) {
	f.Add(around, "score")
	f.Add(around, "normalize")
	f.Add("stages: {a: {shadow: {settings: {b: '}'}}}}", "a")
	f.Fuzz(func(t *testing.T, text, stage string) {
		_, _ = pipeline.Promoted([]byte(text), stage)
		_, _ = pipeline.WithoutTrial([]byte(text), stage)
	})
}
