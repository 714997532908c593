# `make help` lists what there is. Needs python3 (3.11 or later, with venv) and cargo (1.88); tests against Kafka also need
# Java 17 and Maven, those against an object store Go, and all servers are downloaded into .dev/ (see dev/).

SHELL  := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.set-up
PYTEST := $(BIN)/python -m pytest
CARGO  := cargo

# Arguments for pytest: make test ARGS="-k kafka -x"
ARGS ?=
# Of fuzzing for each target, of conformance for each server: make fuzz SECONDS=600
SECONDS ?= 60
# Of windowed reads, over all kinds of keys: make test-windows WINDOWS=1000
WINDOWS ?= 10000
# Of the random proof: make test-proof TRANSACTIONS=5000 KILLS=10
TRANSACTIONS ?= 100000
KILLS ?= 200
SERVER ?= mysql
# Of the model of a lake table, each of 30 steps: make test-lake EXAMPLES=1000
EXAMPLES ?= 300
# Processes that share the tests, each with servers of its own: most tests wait most of their time.
WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-conformance test-native test-faults test-faults-short test-proof test-pipelines test-reconcile test-lake test-spark \
  test-windows test-spec fuzz fetch lint format bench bench-decode bench-snapshot bench-upsert bench-reconcile bench-quick clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with everything in it; does nothing when it is up to date

$(STAMP): pyproject.toml constraints.txt native/Cargo.toml native/Cargo.lock $(wildcard native/src/*.rs native/src/*/*.rs)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed; name one with PYTHON=python3.12"; exit 1; }
	@command -v $(CARGO) >/dev/null || { echo "cargo is needed: install Rust 1.88 or later (rustup, or Debian forky)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "this Python cannot make environments: install its venv package (Debian: python3-venv)"; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt 'maturin>=1.9.4,<2'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt \
	  --no-build-isolation -e '.[dev,embedded,kafka,s3]'
	@touch $@

demo: setup ## A shop database, kept in step while it is written to and the daemon is killed
	@$(BIN)/python dev/demo.py

fetch: setup ## Download the servers that tests talk to, once
	@$(BIN)/python -m dev fetch

test: fetch ## Unit, contract and integration tests, on real MySQL, MariaDB and Kafka
	$(PYTEST) -n $(WORKERS) --dist loadfile tests/unit tests/contract tests/integration $(ARGS)

test-pipelines: fetch ## Whole pipelines: tables adopted, sharded, partitioned, read again, lost and killed, from the command line to readers
	$(PYTEST) -n $(WORKERS) --dist loadfile tests/pipelines $(ARGS)

test-reconcile: fetch ## Trace, ledger, values, repair, schedules and readiness at length, with real servers and daemons
	$(PYTEST) -n $(WORKERS) --dist loadfile tests/reconcile $(ARGS)

test-native: ## The native module's own tests; these need no Python
	cd native && $(CARGO) test --quiet --locked --no-default-features

test-conformance: fetch ## Random tables read three ways, on MySQL and MariaDB; SECONDS=600 for longer
	CONFORMANCE_SECONDS=$(SECONDS) $(PYTEST) -s tests/conformance $(ARGS)

test-faults: fetch ## Kills, power loss and planted mistakes: everything but `test-proof`, of which it has the short form
	$(PYTEST) tests/faults --deselect tests/faults/test_proof.py::test_the_same_for_long $(ARGS)

test-lake: setup ## A lake table against a dictionary: merges, clean-up, others' commits, crashes; EXAMPLES=1000 for more
	LAKE_EXAMPLES=$(EXAMPLES) $(PYTEST) -s --show-capture=no tests/lake $(ARGS)

test-spark: setup ## Spark with Delta Lake reads our tables, changes them, and we go on from there; needs a JDK and Maven
	$(PYTEST) tests/spark $(ARGS)

test-windows: fetch ## Windowed reads under a workload in the same keys, on MySQL and MariaDB; WINDOWS=1000 for less
	WINDOWS=$(WINDOWS) $(PYTEST) -s tests/faults/test_windows.py $(ARGS)

test-proof: fetch ## A workload, kills and planted differences at random, each to be found and repaired; TRANSACTIONS=5000 KILLS=10 for less, SERVER=mariadb
	TRANSACTIONS=$(TRANSACTIONS) KILLS=$(KILLS) $(PYTEST) -s tests/faults/test_proof.py -k 'for_long and $(SERVER)' $(ARGS)

test-faults-short: fetch ## The fault tests that run on every change
	$(PYTEST) tests/faults -m ci $(ARGS)

test-spec: setup ## The models of the protocols: every state, every mutant
	$(BIN)/python spec/run_all.py

fuzz: setup ## Damaged and hostile input into the native module, each target for SECONDS; needs a C++ compiler
	$(BIN)/python -m dev.fuzz --seconds $(SECONDS) $(ARGS)

lint: setup ## ruff, mypy, rustfmt and clippy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd native && $(CARGO) fmt --check && cd fuzz && $(CARGO) fmt --check
	cd native && PYO3_PYTHON="$(CURDIR)/$(BIN)/python" $(CARGO) clippy -q --locked --all-targets -- -D warnings
	cd native/fuzz && CARGO_TARGET_DIR=../target $(CARGO) clippy -q --locked -- -D warnings

format: setup ## Lay the code out
	$(BIN)/ruff check -q --fix . || true
	$(BIN)/ruff format .
	cd native && $(CARGO) fmt && cd fuzz && $(CARGO) fmt

bench: fetch ## Measure snapshot, stream and latency beside their peers
	$(BIN)/python -m bench $(ARGS)

bench-decode: fetch ## Measure decoding and capture beside mysql-replication, MySQL's clients and Debezium (JDK, Maven)
	$(BIN)/python -m bench decode captured flat stages large $(ARGS)

bench-snapshot: fetch ## Measure a first reading beside the mysql client and Debezium, and a stream beside a re-read
	$(BIN)/python -m bench snapshot reread $(ARGS)

bench-upsert: fetch ## Measure upserts beside deltalake's MERGE, MySQL to Delta beside Debezium to Kafka (JDK, Maven), and what reading costs
	$(BIN)/python -m bench upsert grown aged endtoend latency $(ARGS)

bench-reconcile: fetch ## Measure a comparison of values beside its checksum query, pt-table-checksum and whole rows by hand, and the trace
	$(BIN)/python -m bench reconcile traced $(ARGS)

bench-quick: fetch ## The same with small sizes, to see that it works
	$(BIN)/python -m bench --quick

clean: ## Remove everything that was made here, the downloads too
	rm -rf $(VENV) .dev .demo .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist native/target native/fuzz/target
	rm -f cdc/_native*.so
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
