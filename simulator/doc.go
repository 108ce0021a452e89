// Package simulator plays homes that are not there against a gateway: simulated homes, and recorded rooms. Each
// hub holds one MQTT connection over TLS, like a real one. What it sends and what became of it is counted
// so exactly that the rows in a store can be compared with it.
//
// # What a home is
//
// A simulated home has 4 to 8 devices (temperature, humidity, light, CO2, motion, electricity, a door contact,
// batteries). Its signals follow from who is at home when, the weather and the hour, so they go together as in a
// real home. They are a pure function of the seed, the home and the instant. The recorded rooms
// play real readings; recordings/README.md has their source. A first lap ends at the instant at
// which its journal was begun and is played fast; later laps are played live. No reading is ever sent before
// it is said to have happened.
//
// A message is published to homes/HOME/devices/DEVICE/telemetry with QoS 1, as a JSON array of readings:
//
//	[{"metric":"temperature","value":21.53,"unit":"°C","time":"2026-03-01T18:00:00.250000Z","seq":17}, …]
//
// Hubs execute commands, make their devices what deltas say, and report it (docs/devices.md).
//
// A door contact has "text":"open" for "value". The user name, and the client identifier, is what Credentials gives
// and the home's name.
//
// # Exactly once, from the device's side
//
// A hub's work is a numbered line of messages. It depends on nothing but the settings, so a position in that line is
// all that is remembered. A message counts once the gateway has acknowledged it (PUBACK). What was not acknowledged
// when a connection broke is sent again, in order, with the same bytes. The journal holds each hub's acknowledged position and
// how far it may have sent; it is written durably at least every second (JournalEvery, 200 ms), and a hub never
// sends beyond it. A simulator killed at any moment therefore goes on where it was, and sends again at most 256
// sequences of a series (reserveMax, and what was outstanding), which a dedupe stage that remembers 1024 drops. A change of settings
// takes effect at the first message that cannot have been sent yet.
//
// # Why a client of its own
//
// A client library for applications (paho.mqtt.golang) was measured beside this one (BenchmarkHub, BenchmarkPaho): it
// holds ten goroutines and twice the memory for each connection, because it serves callers it does not
// know. Here one goroutine writes what is due and then reads until the next is due; it keeps positions instead
// of payloads, and borrows a buffer only while it writes. The faults need the wire as well: half-open
// connections, resets, 10 MB payloads, wrong acknowledgements. The part of MQTT that a publishing hub needs is 250 lines,
// tested against an independent server. What would change this: hubs that take commands with QoS 2.
package simulator
