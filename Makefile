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
# The two binaries go with whatever is tested: cargo chooses the features of what all depend on by the packages it is given,
# and builds what has others once more. They have no library, and no test of a name that is asked for here.
WITH_BINARIES := -p fastcache-ctl -p fastcache-data
RACE_STORE := cargo test -p fastcache-reactor -p fastcache-chunkstore $(WITH_BINARIES) \
	--features fastcache-reactor/race,fastcache-chunkstore/race --lib -- race::
RACE_CACHE := cargo test -p fastcache-cache $(WITH_BINARIES) --features fastcache-cache/race --test race
E2E_CARGO := cargo test --release -p fastcache-tests $(WITH_BINARIES)
E2E := FASTCACHE_BIN_DIR=$(CURDIR)/target/release $(E2E_CARGO)
E2E_ALL := --lib $(patsubst tests/tests/%.rs,--test %,$(wildcard tests/tests/*.rs))
UNIT := cargo test --workspace --exclude fastcache-tests --exclude fastcache-benches --features fastcache-reactor/sim

.PHONY: help build run stop run-coordinator dev-setup dev-start dev-stop setup test test-verbose test-unit test-e2e test-posix \
        test-cluster test-faults test-race test-gc test-rest test-clouds test-ceph lint fmt bench bench-quick bench-store \
        bench-eviction bench-cold clean
.DEFAULT_GOAL := help

help:
	@echo 'make run              build, start one node, mount it at $(MOUNT), say what to try (again: finds it running)'
	@echo 'make stop             stop that node: flush, unmount, upload what is left'
	@echo 'make test             everything CI runs: lint, unit tests, end-to-end tests'
	@echo 'make build            the two binaries, in target/release'
	@echo 'make dist             the same as they are shipped, in target/dist: slower to build, a tenth less processor time'
	@echo 'make dev-setup dev-start   a coordinator on :8080 and three nodes, mounted at $(DEV_MOUNT)1 to 3 (again: starts what is down)'
	@echo 'make dev-stop         stop all of that, added nodes too'
	@echo 'make run-coordinator  its coordinator alone, in the foreground'
	@echo 'make run-client-N     node N of it (1 to 9) on port 8080+N, in the foreground'
	@echo 'make test-unit | test-e2e | test-posix | test-faults | test-race | test-gc | test-rest | test-clouds | test-ceph | test-image | test-uring | test-tree | test-memory | test-cluster | test-verbose'
	@echo 'make test-cluster     several nodes: coherence, locks, faults, 100,000 operations against a model, and as many while things fail'
	@echo 'make test-image       the container image, built without Docker, and run as the manifests say'
	@echo 'make test-uring-long  every suite that has a mount, over io_uring'
	@echo 'make test-faults      kill -9, outages, damaged images, 100,000 images of power cuts: the long forms'
	@echo 'make test-memory      ten minutes of mixed load within a budget of memory'
	@echo 'make test-programs    PostgreSQL, SQLite, builds, Python and checkpoints on the mount, the long form'
	@echo 'make bench            fio on the mount and on the raw disk, ratios into docs/benchmarks.md'
	@echo 'make bench-metadata   names and attributes through the mounts of a cluster, into docs/benchmarks.md'
	@echo 'make bench-peers      what one node reads from another, next to plain TCP, into docs/benchmarks.md'
	@echo 'make bench-scaling    3 and 30 nodes on a simulated network: the table of docs/scaling.md'
	@echo 'make bench-cold       reads of cold data as a ratio to the object store client alone'
	@echo 'make test-fuzz        every reader of bytes from outside, a minute each'
	@echo 'make bench-layers     what each layer costs alone, with criterion'
	@echo 'make lint | fmt | clean'

# ---- build and run -----------------------------------------------------------------------------------------------

build:
	cargo build --release -p fastcache-ctl -p fastcache-data

# As they are shipped: a tenth less processor time, for twice the time of the build. Benches measure these.
.PHONY: dist
dist:
	cargo build --profile dist -p fastcache-ctl -p fastcache-data

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

# The development environment: tests/setup/dev.sh says what is where. Files and bucket stay in $(DEV_DIR).
#   make dev-setup dev-start DEV_DIR=/data/dev DEV_MOUNT=/mnt/node DEV_PORT=9000
DEV_DIR      ?= dev
DEV_MOUNT    ?= /tmp/fuse-client
DEV_PORT     ?= 8080
DEV_CAPACITY ?= 2GiB
export DEV_DIR DEV_MOUNT DEV_PORT DEV_CAPACITY UP_FLAGS

dev-setup:
	@tests/setup/install.sh run
	@$(MAKE) --no-print-directory build
	@tests/setup/dev.sh setup

dev-start:
	@tests/setup/dev.sh start

dev-stop:
	@tests/setup/dev.sh stop

run-coordinator:
	@tests/setup/install.sh run
	@$(MAKE) --no-print-directory build
	@tests/setup/dev.sh coordinator

run-client-%:
	@tests/setup/install.sh run
	@$(MAKE) --no-print-directory build
	@tests/setup/dev.sh client $*

# ---- test --------------------------------------------------------------------------------------------------------

setup:
	@tests/setup/install.sh test

test: setup lint test-unit test-e2e

test-verbose:
	@$(MAKE) --no-print-directory test TEST_ARGS='--nocapture'

# With debug assertions. They take a minute; what takes fifteen hangs. The object store's wait for faults and deadlines,
# beside the others; what has bounds in milliseconds runs alone.
test-unit:
	$(UNIT) --no-run
	tests/within.py 15 tests/lanes.py --aside fastcache_cloud --alone 'executor warm_restart' $(UNIT)
	$(UNIT) --doc
	FASTCACHE_RACE_RUNS=100 $(RACE_STORE)
	FASTCACHE_RACE_RUNS=50 $(RACE_CACHE)
	$(FUZZ)
	cargo test --release -p fastcache-chunkstore $(WITH_BINARIES) --test warm_restart -- --test-threads=1

# Every reader of bytes that nothing vouches for, a minute each: with coverage by cargo-fuzz where there is a nightly
# toolchain, else by mutation alone. What it finds goes into tests/fuzz/regressions/TARGET/ with its fix.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS := superblock journal chunk_header fuse_request control_message peer_frame
FUZZ := CARGO_TARGET_DIR=$(CURDIR)/target cargo test --manifest-path tests/fuzz/Cargo.toml

.PHONY: test-fuzz
test-fuzz:
	@if cargo +nightly fuzz --version >/dev/null 2>&1; then \
		set -e; \
		FASTCACHE_FUZZ_CORPUS=$(CURDIR)/target/fuzz-corpus $(FUZZ) -- --ignored write_the_corpus; \
		for target in $(FUZZ_TARGETS); do \
			cargo +nightly fuzz run --fuzz-dir tests/fuzz --features libfuzzer --target-dir target/fuzz $$target \
				target/fuzz-corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=16384 -print_final_stats=1; \
		done; \
	else \
		echo 'No nightly with cargo-fuzz (rustup toolchain install nightly; cargo install cargo-fuzz): without coverage'; \
		FASTCACHE_FUZZ_SECONDS=$(FUZZ_SECONDS) $(FUZZ) --release -- --nocapture; \
	fi

# Suites that mostly wait, for graces, deadlines and outages: they run beside the others, the longest first.
ASIDE := rest_transfers faults_cloud gc_fsck bucket_history operating rest_contract remote_coordinator faults_clock
# Suites that measure, or change something that the whole machine has: nothing runs beside them.
ALONE := credentials front_door memory prefetch transport

# Real processes, a real mount, a real S3 server. In each of the two lanes one at a time: they share the machine's disk and
# cores. A new suite needs no entry above: it runs among the others.
test-e2e: setup build
	@$(E2E_CARGO) $(E2E_ALL) --no-run
	@FASTCACHE_BIN_DIR=$(CURDIR)/target/release tests/within.py 40 tests/lanes.py --aside '$(ASIDE)' --alone '$(ALONE)' \
		$(E2E_CARGO) $(E2E_ALL) -- --test-threads=1 $(TEST_ARGS)
	$(E2E) --doc
	@$(MAKE) --no-print-directory test-uring

# What the mount promises, once more over io_uring, in its short form. The tests switch it on in the kernel and put that back.
# Any other target runs over it too: FASTCACHE_TEST_TRANSPORT=uring make test-posix
.PHONY: test-uring
test-uring: setup build
	@if [ -e /sys/module/fuse/parameters/enable_uring ]; then \
		FASTCACHE_TEST_TRANSPORT=uring FASTCACHE_CRASH_ROUNDS=2 tests/within.py 30 \
			env $(E2E) --no-fail-fast --test 'semantics_*' --test interrupts --test crash --test posix -- --test-threads=1 $(TEST_ARGS); \
	else \
		echo '*** NOT TESTED: FUSE over io_uring. This kernel does not have it (Linux 6.14, CONFIG_FUSE_IO_URING). ***'; \
	fi

# What uses the mount, over io_uring, in its short form. Left out is what asks of a mount only that it takes a file (clouds,
# credentials, rest_coordinator, rest_contract), what starts its nodes itself (bad_input, front_door, dev_environment,
# manifests, image), what is about both transports already (transport), and what only measures (cold_reads). TEST_ARGS as
# for test-e2e.
URING_SUITES := 'semantics_*' 'programs*' 'faults_*' bucket_history crash fsx gc_fsck interrupts larger_than_the_store \
	load operating posix prefetch remote_coordinator rest rest_conditions rest_paths rest_transfers stress tree_copy
.PHONY: test-uring-long
test-uring-long: setup build
	FASTCACHE_TEST_TRANSPORT=uring $(E2E) --no-fail-fast $(foreach suite,$(URING_SUITES),--test $(suite)) -- \
		--test-threads=1 $(TEST_ARGS)

# The POSIX suites, and the load of our own, in their long forms: about half an hour.
test-posix: setup build
	FASTCACHE_FSX_SEEDS=8 FASTCACHE_FSX_OPS=10000 FASTCACHE_FSX_SECONDS=3600 \
	FASTCACHE_LOAD_ROUNDS=10 FASTCACHE_LOAD_OPS=8000 FASTCACHE_LOAD_SECONDS=3600 \
	FASTCACHE_STRESS_SECONDS=5 \
	$(E2E) --no-fail-fast --test posix --test fsx --test stress --test load --test interrupts -- \
		--test-threads=1 --nocapture

# A tree of 20,000 files and 300 MB through a directory and through S3: six minutes.
.PHONY: test-tree
test-tree: setup build
	FASTCACHE_TREE=long $(E2E) --no-fail-fast --test tree_copy -- --test-threads=1 --nocapture

# Ten minutes of mixed load on a node with little memory: it stays within its budget, and ends at the level of minute 2.
.PHONY: test-memory
test-memory: setup build
	FASTCACHE_MEMORY_SECONDS=600 $(E2E) --test memory -- --test-threads=1 --nocapture

# Programs on the mount, the long form: PostgreSQL, SQLite, builds, Python, checkpoints.
.PHONY: test-programs
test-programs: setup build
	FASTCACHE_PROGRAMS_LONG=1 $(E2E) --no-fail-fast --test 'programs*' -- --test-threads=1 --nocapture

# The long forms: 50 rounds of kill -9, outages of a minute, damaged images by the thousand; 100,000 images of power cuts
# for the store, and as many sessions of the whole cache, in at most ten minutes each.
test-faults: setup build
	FASTCACHE_POWER_IMAGES=100000 FASTCACHE_POWER_SECONDS=600 \
		cargo test --release -p fastcache-chunkstore --lib -- --nocapture tests::power
	FASTCACHE_DAMAGE_ROUNDS=2000 cargo test --release -p fastcache-chunkstore --test damaged_images
	FASTCACHE_CRASH_ROUNDS=50 FASTCACHE_LOSS_ROUNDS=50 FASTCACHE_FAULTS=long $(E2E) --no-fail-fast --test crash \
		--test bucket_history --test faults_cloud \
		--test faults_device --test faults_processes --test faults_clock -- \
		--test-threads=1 --nocapture --include-ignored
	FASTCACHE_POWER_IMAGES=100000 FASTCACHE_POWER_SECONDS=600 \
		cargo test --release -p fastcache-cache --test power -- --nocapture

# The long form of schemathesis against both servers: five minutes each.
test-rest: setup build
	FASTCACHE_CONTRACT_SECONDS=300 $(E2E) --test rest_contract -- --test-threads=1 --nocapture

# Every object store that can be had here: moto, Azurite, and s3s-fs, which checks signatures; and every kind of
# temporary credentials.
test-clouds:
	@tests/setup/install.sh clouds
	@$(MAKE) --no-print-directory build
	FASTCACHE_CLOUDS=s3s,identities $(E2E) --test clouds --test credentials -- --test-threads=1 --nocapture

# The image of k8s/Dockerfile on a base made of Debian's packages, and what the manifests run in it. The first time it compiles
# everything: a quarter of an hour on two cores.
.PHONY: test-image
test-image:
	@tests/setup/install.sh image
	tests/setup/image.sh
	$(E2E) --test image -- --test-threads=1 --nocapture --ignored

# A real Ceph object gateway of one node; 430 MB of memory.
test-ceph:
	@tests/setup/install.sh ceph
	@$(MAKE) --no-print-directory build
	FASTCACHE_CLOUDS=ceph $(E2E) --test clouds ceph -- --test-threads=1 --nocapture

# What threads share, in thousands of interleavings (shuttle), and the buffers under Miri where a toolchain has it: five to
# ten minutes.
test-race:
	$(RACE_STORE)
	$(RACE_CACHE)
	@if cargo +nightly miri --version >/dev/null 2>&1; then \
		MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=8 \
			timeout 600 cargo +nightly miri test -p fastcache-reactor --lib -- buffer::tests; \
	else \
		echo 'Miri is not installed (rustup component add --toolchain nightly miri rust-src): buffers were tested by models only'; \
	fi

# The long form of gc: beside writers for two minutes, and until what is queued is deleted: four minutes.
test-gc: setup build
	FASTCACHE_GC_LONG=1 $(E2E) --test gc_fsck -- --test-threads=1 --nocapture

# Several nodes on one machine, the long form: 100,000 operations against a model, and as many while processes are killed, stand
# and are cut off; the coordinator killed for half a minute, everything killed and nodes restarted ten times. 40 to 50 minutes on
# two cores: 4 for coherence_oracle, 15 for coherence_faults, 13 for faults_cluster, 3 for peers with 1 GiB, 2 for
# remote_coordinator, and what is left.
test-cluster: setup build
	FASTCACHE_ORACLE_OPS=100000 FASTCACHE_EXCL_ROUNDS=500 FASTCACHE_SHARED_READ_MIB=1024 FASTCACHE_FAULTS=long $(E2E) --no-fail-fast \
		--test remote_coordinator --test coherence --test coherence_locks --test peers --test faults_cluster --test coherence_oracle \
		--test coherence_faults -- --test-threads=1 --nocapture

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

fmt:
	cargo fmt --all

DIST := FASTCACHE_BIN_DIR=$(CURDIR)/target/dist

# ---- measure -----------------------------------------------------------------------------------------------------

bench: dist
	@tests/setup/install.sh bench
	$(DIST) tests/bench.py --write docs/benchmarks.md

bench-quick: dist
	@tests/setup/install.sh bench
	$(DIST) tests/bench.py --quick

# Names and attributes through the mounts of a cluster: a quarter of an hour, most of it a directory of a million entries.
.PHONY: bench-metadata
bench-metadata: dist
	@tests/setup/install.sh bench
	$(DIST) tests/bench_metadata.py --write docs/benchmarks.md

# What one node reads from another, next to plain TCP and to the disk: two minutes.
.PHONY: bench-peers
bench-peers: dist
	$(DIST) tests/bench_peers.py --write docs/benchmarks.md

# What grows with the number of nodes, on a simulated network: the table of docs/scaling.md.
.PHONY: bench-scaling
bench-scaling:
	cargo run -p fastcache-sim --example scaling

# The choice of the embedded store: group commit and reopen of the candidates.
bench-store:
	cargo run --release -p fastcache-benches --bin embedded-store

# The choice of what to evict: hit rates of several policies.
bench-eviction:
	cargo run --release -p fastcache-benches --bin eviction

# Cold reads through the mount, as a ratio to the same client library without a file system.
bench-cold: setup build
	$(E2E) --test cold_reads -- --test-threads=1 --nocapture --ignored moto

# A layer each, with criterion: docs/benchmarks.md says what the numbers mean. Root, for the mount of the last one.
LAYERS := wire reactor allocator index journal checksum cache_hit cache_miss fuse_round_trip
.PHONY: bench-layers
bench-layers: build
	@set -e; for layer in $(LAYERS); do cargo bench -p fastcache-benches --bench $$layer; done

clean:
	@if [ -x $(CTL) ] && [ -f $(DIR)/node.json ]; then $(CTL) down --dir $(DIR) || true; fi
	@if [ -x $(CTL) ] && [ -d $(DEV_DIR) ]; then tests/setup/dev.sh stop; fi
	cargo clean
	rm -rf dev .venv
