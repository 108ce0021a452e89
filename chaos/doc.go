// Package chaos breaks a whole installation, with a seed, and then counts.
//
// It holds nothing but tests. Each seed is one run: two gateways, every stage unit and every sink as a process of the real
// binary, a broker (the embedded one as a process of its own, or Apache Kafka with one or three brokers), the ClickHouse
// engine, and simulated hubs that know what was acknowledged to them, over MQTT and TLS. Between the processes stand TCP
// proxies. From the seed follows a list of faults: which process is killed with -9, stopped for a moment or for longer
// than the group waits for it (it then goes on as a zombie), restarted in order, joined by a second one; which connections
// are cut (those between brokers, too), held up, delayed, throttled, left half open, or lose an answer to a request that took effect; whose disk is full;
// whose clock is set, Apache Kafka's too.
//
// Then the faults stop, the hubs finish, everything drains, and what is stored is compared:
//
//   - Every reading that was acknowledged to a hub is in ClickHouse once and in Parquet once, by home, device, metric and
//     sequence, and nothing else is.
//   - The gateways' stream, as it stands in Kafka, is played message for message through the same pipeline.yaml on a broker
//     that nothing disturbs. Readings, windows, late rows, scores, alerts and dead letters are the same rows, bit for bit.
//   - To the product's pipeline each run adds readings parted anew, by metric, and a stage that remembers behind them: by seed
//     windows over all homes in SQL, or numbers in Python. The parted rows, the windows with what is late for them and the
//     numbers are those of the undisturbed run. Where a gateway's clock is set by 40 s or more, in which order the rows of several
//     tasks come is chance, and windows call rows late by it: they are held to a replay of the parted stream as it stands.
//   - Every alert was posted; a receiver that drops the ids it has seen has it once, the same as ClickHouse.
//   - Every process ends with 0 when it is told to, takes no more memory than memoryMax, and does not flood its log;
//     nothing half written can be seen beside the Parquet files.
//
// Run it with
//
//	make chaos                   # 100 seeds, one after the other
//	make chaos SEED=7            # that one again; what it leaves is kept when it fails
//	make chaos COUNT=10 BROKER=kafka3
//	make chaos-planted           # the harness finds bugs that are planted for it
//
// A seed fixes what is done and when, not how the machine schedules it: a failing seed fails again often, not always.
// What a failing one leaves (data, logs, the list of faults) stays in the folder that it prints.
//
// Stages in SQL and Python need python3; the first run makes their environment. Without it nothing is run.
//
// Clocks of roles are stepped, and bugs planted (TestPlantedBugsAreFound, which shows that the harness can fail), by building the binary
// with other versions of a few source lines laid over the product's (go build -overlay): the product has no seam for them.
package chaos
