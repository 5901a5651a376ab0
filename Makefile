# The front door. CI calls the same targets (.ci/run).
#
# Where things go: everything a run leaves behind is under $(DIR), which git ignores; the mount is $(MOUNT).
#   make run DIR=/data/fastcache MOUNT=/mnt/fuse UP_FLAGS='--nvme-capacity 50GiB'

DIR      ?= dev/node
MOUNT    ?= /tmp/fuse-client1
PORT     ?= 8081
UP_FLAGS ?=
# Passed to every end-to-end test binary, e.g. TEST_ARGS='--nocapture tree'
TEST_ARGS ?=

CTL := target/release/fastcache-ctl
E2E := FASTCACHE_BIN_DIR=$(CURDIR)/target/release cargo test --release -p fastcache-tests

.PHONY: help build run stop run-coordinator run-client-1 setup test test-verbose test-unit test-e2e test-posix \
        test-cluster test-faults lint fmt bench bench-quick bench-store clean
.DEFAULT_GOAL := help

help:
	@echo 'make run              build, start one node, mount it at $(MOUNT), say what to try (again: finds it running)'
	@echo 'make stop             stop that node: flush, unmount, upload what is left'
	@echo 'make test             everything CI runs: lint, unit tests, end-to-end tests'
	@echo 'make build            the two binaries, in target/release'
	@echo 'make run-coordinator  a coordinator on :8080, in the foreground'
	@echo 'make run-client-1     a node of that coordinator on :8081, in the foreground'
	@echo 'make test-unit | test-e2e | test-posix | test-faults | test-cluster | test-verbose'
	@echo 'make bench            fio on the mount and on the raw disk, ratios into docs/benchmarks.md'
	@echo 'make lint | fmt | clean'

# ---- build and run -----------------------------------------------------------------------------------------------

build:
	cargo build --release -p fastcache-ctl -p fastcache-data

run:
	@tests/setup/install.sh run
	@$(MAKE) --no-print-directory build
	@if $(CTL) status --dir $(DIR) >/dev/null 2>&1; then \
		echo "already running (make stop ends it):"; $(CTL) status --dir $(DIR); \
	else \
		mkdir -p $(DIR) && $(CTL) up --dir $(DIR) --mount $(MOUNT) --port $(PORT) --detach $(UP_FLAGS); \
	fi

stop:
	@$(CTL) down --dir $(DIR)

run-coordinator:
	@tests/setup/install.sh run
	@$(MAKE) --no-print-directory build
	@mkdir -p dev/coordinator
	$(CTL) coordinator --listen 0.0.0.0:8080 --state-dir dev/coordinator

run-client-1:
	@tests/setup/install.sh run
	@$(MAKE) --no-print-directory build
	@mkdir -p dev/client-1 dev/cloud
	$(CTL) up --dir dev/client-1 --mount $(MOUNT) --port 8081 --coordinator localhost:8080 \
		--cloud-provider dir --cloud-dir dev/cloud $(UP_FLAGS)

# ---- test --------------------------------------------------------------------------------------------------------

setup:
	@tests/setup/install.sh test

test: setup lint test-unit test-e2e

test-verbose:
	@$(MAKE) --no-print-directory test TEST_ARGS='--nocapture'

# With debug assertions.
test-unit:
	cargo test --workspace --exclude fastcache-tests

# Real processes, a real mount, a real S3 server. One at a time: they share the machine's disk and cores.
test-e2e: setup build
	$(E2E) --no-fail-fast -- --test-threads=1 $(TEST_ARGS)

test-posix: setup build
	$(E2E) --test posix -- --test-threads=1 --nocapture

# The long form of the kill -9 test: 50 rounds.
test-faults: setup build
	FASTCACHE_CRASH_ROUNDS=50 $(E2E) --test crash -- --test-threads=1 --nocapture

test-cluster:
	@echo 'There is no test with several nodes yet: peers and revocations between nodes come with a later issue.'
	@echo 'What exists is a node with a coordinator of its own process, over gRPC:'
	@$(MAKE) --no-print-directory setup build
	$(E2E) --test remote_coordinator -- --test-threads=1

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

fmt:
	cargo fmt --all

# ---- measure -----------------------------------------------------------------------------------------------------

bench: build
	@tests/setup/install.sh bench
	tests/bench.py --write docs/benchmarks.md

bench-quick: build
	@tests/setup/install.sh bench
	tests/bench.py --quick

# The choice of the embedded store: group commit and reopen of the candidates.
bench-store:
	cargo run --release -p fastcache-benches --bin embedded-store

clean:
	@if [ -x $(CTL) ] && [ -f $(DIR)/node.json ]; then $(CTL) down --dir $(DIR) || true; fi
	cargo clean
	rm -rf dev .venv
