// Package cases runs a stage against its cases: YAML that says what goes in and what must come out. `hearthline test` does for the stages
// beside pipeline.yaml, and flowtest.Run in tests of stages in Go.
//
// # Cases
//
// A file holds one case a YAML document; documents are parted by "---". Unknown keys are errors, with their line.
//
//	name: what it shows             # needed
//	settings: {forget: 1h}          # of the stage; else its defaults
//	window: {size: 1m, by: [home]}  # as in pipeline.yaml: the stage is given whole windows; late rows come out as "late"
//	refuses: text                   # opening with these settings must fail with an error that holds this; no steps then
//	start: 2024-01-01T00:00:00Z     # what relative times are relative to; this is the default
//	input: [events, room key null]  # columns of the input: "name type", and "null" if nullable; "events" stands for those
//	                                # of flow.EventSchema, the default. Types: key, text, float64, int64, int32, bool, instant, map
//	                                # of a stage that tells its inputs apart, by name: {rows: [events], table: [device key, room key]}
//	each: {home: h1, device: d1}    # values of columns that a row does not name
//	exact: true                     # wanted rows must name all columns that are not null; else those named are compared
//	tolerance: 1e-9                 # relative, of float64 values in want; this is the default; 0 is bit for bit
//	steps:
//	- in:                           # rows, as maps by column name; a row that does not name received is received at its time
//	  - {time: 0s, metric: temperature, value: 21.5}
//	                                # of a stage with named inputs: {table: [rows]}, one input a step
//	  want:                         # by output, the rows of this step in their order; "want: any" looks at nothing
//	    unique:
//	    - {value: 21.5}
//	  dead:                         # rows that the stage refused: their number in this step's in, and a part of the reason
//	  - {row: 3, reason: out of range}
//	  - {reason: no sense}          # a row that it had kept before: of a window, say
//	- advance: 5m                   # the watermark; "end" is the end of time
//	- snapshot: before              # keeps the state under a name
//	- restore: before               # gives it to a fresh instance, which goes on
//	- in: [{value: .nan}]
//	  error: text                   # of the whole batch
//	  counters: {duplicates: 3}     # after the step, for stages with Counters() map[string]int64
//
// A time is RFC 3339, or a duration from start: "90s", "-1h". Without want, nothing may come out; without dead, nothing may
// be refused.
//
// # What every case also shows
//
// Beside its own steps, each case is run again and again to hold the stage to its contract:
//
//   - an allocator that counts finds leaks and double releases, and inputs must come out as they went in;
//   - zero rows come first: their outputs must have the schemas of the real ones, and must change nothing;
//   - twice the same: the bytes of outputs and snapshots must be equal;
//   - with a snapshot restored into a fresh instance after each step;
//   - with the rows between other steps cut and joined at random, as slices and as records of their own, with zero rows
//     thrown in and restarts between: the results must be equal, in order for each series, and so must be the state;
//   - for stages that act on time, with further watermarks wherever the received times allow one: once all is closed by the
//     end of time, the results must be equal.
//
// A case that fails is told column by column, the rows that came beside those wanted. [Update] (`hearthline test --update`) writes what came
// out into a file of cases, when it holds in all of these ways.
//
// The seed of the random cuts is printed when a case fails; FLOWTEST_SEED sets it.
package cases
