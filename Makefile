# Hearthline. `make run` and `make test` do their own set-up; `make help` lists the rest.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Versions of tools that only check the code; what the product is made of is in go.mod.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOSEC := github.com/securego/gosec/v2/cmd/gosec@v2.30.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
GOTESTSUM := gotest.tools/gotestsum@v1.13.0

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X hearthline/cli.version=$(VERSION)
GO_FILES := $(shell git ls-files --cached --others --exclude-standard '*.go' 'go.mod' 'go.sum' 'console/*' 'simulator/recordings/*' 'sinks/clickhouse/*' 2>/dev/null)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

bin/hearthline: $(GO_FILES)
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $@ .

.PHONY: build
build: bin/hearthline ## build the one binary, bin/hearthline

.PHONY: run
run: bin/hearthline ## the whole product on this machine, fed by a recorded room and 200 simulated homes (Ctrl-C drains)
	@exec ./bin/hearthline up $(ARGS)

.PHONY: kafka
kafka: ## Apache Kafka itself on this machine, for development (ARGS="-brokers 3 -dir DIR -port 9092"; needs Java 17 and Maven)
	@go run ./streams/apache/kafka $(ARGS)

.PHONY: test
test: tools ## every test, race detector on (RERUN=1: three at most that fail run once more, and are named)
ifdef RERUN
	go run $(GOTESTSUM) --format pkgname --rerun-fails=1 --rerun-fails-max-failures=3 --packages=./... -- -race -timeout 40m
else
	go test -race -timeout 40m ./...
endif
	go test -count=1 -run 'TestSimulation|TestASeed' ./pipeline/run # thousands of schedules, for which the race detector is too slow
	go test -count=1 -run TestBuffersComeBack ./streams # pools, which the race detector has lose things
	go test -run '^$$' -bench . -benchtime 1x ./flow/... ./stages/... ./ingest/payload >/dev/null # benchmarks that need no servers still run

.PHONY: chaos
chaos: tools ## break whole installations, seed after seed, and count (SEED=, COUNT=100, BROKER=embedded|kafka1|kafka3, KEEP=1)
	go test ./chaos -count=1 -timeout 6h -run 'TestChaos$$' -v -args -seed=$(or $(SEED),0) -count=$(or $(COUNT),$(if $(SEED),1,100)) -broker=$(BROKER) $(if $(KEEP),-keep)

.PHONY: chaos-planted
chaos-planted: tools ## the harness of make chaos finds bugs that are planted for it
	go test ./chaos -count=1 -timeout 1h -tags planted -run 'TestPlanted' -v

.PHONY: simulate
simulate: ## the task loop in virtual time, a million seeded schedules of faults, on one core (COUNT=, SEED=)
	go test ./pipeline/run -count=1 -timeout 24h -run 'TestSimulation$$' -v -args -schedules=$(or $(COUNT),1000000) -simulate-seed=$(or $(SEED),0)

.PHONY: takeover
takeover: tools ## a stage with a gigabyte of state is killed: all its partitions publish again within 10 s (SERIES=1650000; some minutes)
	TAKEOVER_SERIES=$(or $(SERIES),1650000) go test ./pipeline/run -run '^$$' -bench Takeover -benchtime 1x -timeout 2h

.PHONY: check
check: ## gofmt, go vet, staticcheck, gosec, mypy, import rules, generated files, known vulnerabilities
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "gofmt -w these: $$bad"; exit 1; }
	go vet ./...
	go mod verify >/dev/null
	go mod tidy -diff
	go run $(STATICCHECK) ./...
	go test -count=1 -run TestRooms .
	@.ci/check-python
	@.ci/check-security '$(GOSEC)'
	@.ci/check-vulnerabilities '$(GOVULNCHECK)'

.PHONY: outage
outage: tools ## ClickHouse gone for ten minutes at full load: memory of every process, then every row once (half an hour)
	go test ./cli -run '^TestOutage$$' -count=1 -v -timeout 3h -outage 10m -outage-margin 30s $(ARGS)

.PHONY: publishers
publishers: tools ## the broker gone for 30 s while 5,000 hubs publish: what was acknowledged is there, the gateway's memory is bounded (some minutes)
	go test ./cli -run '^TestPublishers$$' -count=1 -v -timeout 1h -publishers $(or $(COUNT),5000) -publishers-outage 30s

.PHONY: bench
bench: tools ## benchmarks of every room (compare runs with benchstat)
	go test -run '^$$' -bench . -benchmem ./...
	go test ./cli -run '^TestConnections$$' -count=1 -v -timeout 1h -connections 10000 -connections-publish 10s $(ARGS) # beside mosquitto
	go test ./cli -run '^TestTapToDevice$$' -count=1 -v -tap 2000 -tap-load 10000 -tap-apache # two gateways on Apache Kafka

# What the tests need beside Go: real MQTT clients, and a C compiler for the race detector.
.PHONY: tools
tools:
	@.ci/install-tools

.PHONY: clean
clean: ## remove what was built; data/ stays
	rm -rf bin
