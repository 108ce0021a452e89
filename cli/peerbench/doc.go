// Package peerbench sets stages beside Kafka Streams and Quix Streams: the same work on the same events, Kafka → stage → Kafka, over the same
// Apache Kafka. What is measured is the CPU time, user and system, of the process that does the work with all that it starts, after it
// has warmed up; so the figures hardly depend on what else the machine does, and their ratios not on the machine.
//
// The work: of readings of two metrics keep one, turn its value from Celsius into Fahrenheit, and write time, home, device and value. The
// peers carry an event a message, as JSON: that is what their users do, and what there is for them. Ours carry a record batch a message,
// as the gateway makes them; how large those are depends on the load, so both large and small ones are measured.
//
// It is run by `make bench`, or alone: go test ./cli/peerbench -run XXX -bench Peers -v. What is not installed is not measured, and says so.
package peerbench
