GO ?= go
BENCHTIME ?= 1s
BENCH ?=
FUZZTIME ?= 30s
DURATION ?= 2m
WORKERS ?= 3
SEED ?=
SCREENSHOTS := overview-light trace-dark dead-letter-light replay overview-phone-dark
GOLANGCI_LINT_VERSION := 2.15.0

# The race detector needs a C compiler, without which Go turns cgo off.
RACE := $(if $(filter 1,$(shell $(GO) env CGO_ENABLED)),-race)
GOLANGCI_LINT := bin/golangci-lint-$(GOLANGCI_LINT_VERSION)
BENCHMARKED = $(shell grep -rl --include='*_test.go' '^func Benchmark' . | xargs -r -n1 dirname | sort -u)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: build ## Build the worker and run it, by default on SQLite and the in-process bus
	bin/worker run

.PHONY: build
build: ## Build bin/worker
	$(GO) build -o bin/ ./cmd/worker

.PHONY: test
test: bin/with-servers ## Run all tests on a real Postgres and a real RabbitMQ, started if none are named
	$(if $(RACE),,@echo "There is no C compiler: the tests run without the race detector.")
	bin/with-servers -- $(GO) test $(RACE) -shuffle=on -count=1 -timeout=20m ./...

# Another system in a folder, for its servers; only root can make and use it. Elsewhere, name servers of the wanted
# version by DATABASE_URL, RABBITMQ_URL and RABBITMQ_MANAGEMENT_URL, as those of Docker images.
NEW_SYSTEM ?= /var/tmp/worker-servers-trixie

.PHONY: test-servers-new
test-servers-new: $(NEW_SYSTEM)/.complete ## Run all tests and the comparison on RabbitMQ 4 and Postgres 17, from Debian trixie
	TESTSERVERS_ROOT=$(NEW_SYSTEM) $(MAKE) test bench-quick

$(NEW_SYSTEM)/.complete:
	command -v debootstrap >/dev/null || apt-get install -qq --yes --no-install-recommends debootstrap
	rm -rf $(NEW_SYSTEM)
	debootstrap --variant=minbase --include=rabbitmq-server,postgresql trixie $(NEW_SYSTEM) >/dev/null
	touch $@

.PHONY: cross
cross: ## Build the worker for other systems, check all code for Windows and for 32 bits, and run tests on 32 bits
	@set -e; for system in linux/arm linux/386 darwin/arm64 windows/amd64; do \
		echo "go build for $$system"; \
		CGO_ENABLED=0 GOOS=$${system%/*} GOARCH=$${system#*/} $(GO) build -o /dev/null ./cmd/worker; \
	done
	CGO_ENABLED=0 GOOS=windows $(GO) vet ./...
	CGO_ENABLED=0 GOOS=linux GOARCH=386 $(GO) vet ./...
	@set -e; export CGO_ENABLED=0 GOOS=linux GOARCH=386; \
	rm -f bin/32-bit.test; \
	$(GO) test -c -o bin/32-bit.test ./internal/events; \
	if message=$$(bin/32-bit.test -test.run='^$$' 2>&1); then \
		$(GO) test ./internal/events ./internal/store/sqlite; \
	elif echo "$$message" | grep -qi 'exec format error\|bad CPU type'; then \
		echo "Skipped: this system does not run programs of 32 bits."; \
	else \
		echo "$$message"; exit 1; \
	fi

.PHONY: api
api: ## Write the listing of the public API, docs/api.txt
	$(GO) test -count=1 -run='^TestAPI$$' ./internal/test/module -update

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Check style and the mistakes that can be seen in the source
	$(GOLANGCI_LINT) run

.PHONY: bench
bench: build ## Measure the worker beside the raw clients and stock Watermill; BENCH=-growth adds a table of ten million
	@$(GO) build -o bin/bench ./internal/test/bench/cmd/bench
	bin/bench -into=docs $(BENCH)

.PHONY: bench-quick
bench-quick: build
	@$(GO) build -o bin/bench ./internal/test/bench/cmd/bench
	bin/bench -quick

.PHONY: gobench
gobench: bin/with-servers ## Run each Go benchmark for BENCHTIME; a Postgres started for it does not sync to disk
	bin/with-servers -- $(GO) test -run='^$$' -bench=. -benchmem -benchtime=$(BENCHTIME) -timeout=20m $(BENCHMARKED)

.PHONY: fuzz
fuzz: ## Fuzz the decoding of events, each target for FUZZTIME
	@set -e; for target in $$($(GO) test -list='^Fuzz' ./internal/events | grep '^Fuzz'); do \
		$(GO) test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) ./internal/events; \
	done

.PHONY: torture
torture: build ## Harm workers and servers under traffic for DURATION, by SEED, and check that nothing is lost or doubled
	@$(GO) build -o bin/torture ./internal/test/torture/cmd/torture
	bin/torture -duration=$(DURATION) -workers=$(WORKERS) $(if $(SEED),-seed=$(SEED))

PARALLEL ?= 2

.PHONY: torture-long
torture-long: build ## Do runs of 8 minutes, PARALLEL at a time, until there were 1 000 faults; the table goes to RESULT.md
	@$(GO) build -o bin/torture ./internal/test/torture/cmd/torture
	bin/torture -faults=1000 -parallel=$(PARALLEL) -duration=8m -workers=$(WORKERS) $(if $(SEED),-seed=$(SEED)) \
		-into=internal/test/torture/RESULT.md

.PHONY: torture-cluster
torture-cluster: DURATION = 10m
torture-cluster: build ## As torture, on three brokers with quorum queues, Postgres with a standby, and pgbouncer
	@$(GO) build -o bin/torture ./internal/test/torture/cmd/torture
	bin/torture -cluster -duration=$(DURATION) -workers=$(WORKERS) $(if $(SEED),-seed=$(SEED)) \
		-into=internal/test/torture/RESULT-cluster.md

SCENARIOS ?=

.PHONY: observe
observe: bin/prometheus ## Play SCENARIOS (default all), and compare metrics, alerts, readiness, traces and doctor with the truth
	@$(GO) build -o bin/observe ./internal/test/reports/cmd/observe
	bin/observe -prometheus=bin/prometheus $(if $(SCENARIOS),-scenarios='$(SCENARIOS)',-into=internal/test/reports/RESULT.md)

# The one on this machine, or the one program out of Debian's package, of which nothing is installed.
bin/prometheus:
	mkdir -p bin
	if command -v prometheus; then ln -sf "$$(command -v prometheus)" $@; else \
		folder=$$(mktemp -d) && (cd "$$folder" && (apt-get download -qq prometheus || \
		(apt-get update -qq && apt-get download -qq prometheus)) && dpkg-deb -x prometheus_*.deb .) && \
		cp "$$folder/usr/bin/prometheus" $@ && rm -rf "$$folder"; fi

.PHONY: mutants
mutants: bin/with-servers ## Put known faults into the source, one at a time, and see each found by the tests
	bin/with-servers -- $(GO) run ./internal/test/mutants/cmd/mutants

.PHONY: model
model: ## Check the model of delivery with spin, and that it finds each of its faults; FAULTS=2 takes minutes
	internal/test/model/check

.PHONY: demo
demo: build ## Run a worker on sample clinic traffic, and say what to look for
	bin/worker demo

.PHONY: screenshots
screenshots: ## Take the README's screenshots of the console, in a headless Chromium, from the demo's data
	$(GO) test -count=1 -run=InBrowser ./internal/console -args -screenshots=$(CURDIR)/bin/screenshots
	mkdir -p docs/screenshots
	cp $(SCREENSHOTS:%=bin/screenshots/%.png) docs/screenshots/

.PHONY: man
man: ## Write man pages of all commands into bin/man
	mkdir -p bin/man
	$(GO) test -count=1 -run='^TestManPages$$' ./internal/cli -args -man=$(CURDIR)/bin/man

.PHONY: tidy
tidy: ## Bring go.mod and go.sum in line with the source
	$(GO) mod tidy

.PHONY: bin/with-servers
bin/with-servers:
	@$(GO) build -o $@ ./internal/test/testservers/cmd/with-servers

.PHONY: lint-tool
lint-tool: $(GOLANGCI_LINT)

$(GOLANGCI_LINT):
	GOBIN=$(CURDIR)/bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(GOLANGCI_LINT_VERSION)
	mv bin/golangci-lint $@
