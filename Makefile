# Short verbs; `make help` lists them. A fresh clone needs nothing but Python
# 3.10 or newer: .venv is made, and made again when setup.cfg changes, by itself.
#
#   make PYTHON=python3.12 test         another Python (for a new .venv)
#   make test ARGS='-k units -x'        arguments for pytest, bench, soak or fuzz

PYTHON ?= python3
ARGS ?=
MINUTES ?= 5
VENV := .venv
BIN := $(VENV)/bin

# Two stamps, so that running the proxy doesn't wait for mypy to download.
RUN := $(VENV)/installed-run
DEV := $(VENV)/installed-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test lint format types diagrams diagrams-current check bench soak fuzz clean

# List the verbs
help:
	@awk '/^# / { if (!text) text = substr($$0, 3); next } \
	  /^[a-z-]+:/ && text { sub(/:.*/, ""); printf "  make %-18s%s\n", $$0, text } \
	  { text = "" }' Makefile

# Start the proxy: ORIGIN=https://… [PORT=8080] [CACHE_DIR=…]; a demonstration without ORIGIN
run: $(RUN)
	@# The origin appears under /origin/. make exports the values, so that the
	@# shell never reads them as part of a command: & and ; are safe.
	@set -- serve $${PORT:+--port "$$PORT"} $${CACHE_DIR:+--cache-dir "$$CACHE_DIR"}; \
	if [ -n "$${ORIGIN-}" ]; then set -- "$$@" --mount "/origin=$$ORIGIN"; \
	else set -- "$$@" --demo; fi; \
	exec $(BIN)/python -m cachefsm "$$@"

# Run every test that this machine can run
test: $(DEV)
	$(BIN)/python -m pytest $(ARGS)

# Look for mistakes and unformatted code
lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Format the code, and correct what can be corrected safely
format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Check the types
types: $(DEV)
	$(BIN)/python -m mypy --strict cachefsm

# Draw the lifecycle into diagrams/, as pictures too where Graphviz is installed
diagrams: $(RUN)
	$(BIN)/python -m cachefsm diagram --output diagrams

# Fail if diagrams/ no longer shows the lifecycle in the code
diagrams-current: $(RUN)
	$(BIN)/python -m cachefsm diagram --output diagrams --check

# Run lint, types, diagrams-current and test, as CI does
# (the tests come last: theirs are the closing lines to read)
check: lint types diagrams-current test

# Measure against a direct client and other programs: [ARGS="fill seek --rounds 1"]
bench: $(DEV)
	$(BIN)/python -m benchmarks $(ARGS)

# Run under random load, faults and kills, after a download with 100 kills: [MINUTES=5]
soak: $(DEV)
	KILLS=100 $(BIN)/python -m pytest -q tests/test_kills.py
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

# Send ten thousand mutated requests to a running proxy: [ARGS='--count N --seed N']
fuzz: $(DEV)
	$(BIN)/python -m tests.fuzz $(ARGS)

# Remove everything that make and the tools have made
clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find cachefsm tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# pip tells about every package that is there already; show the ones it fetches.
# A pipe's status is its last command's, so pip leaves its own in a file.
define install
	@echo "$(1)"
	@{ $(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
	     --editable '$(2)' 2>&1 || echo failed >$(VENV)/pip-failed; } | \
	  awk '/^ *(ERROR|error|Could not)/ { bad = 1 } bad { print; next } \
	    /^Collecting/ { print "  " $$2; fflush() } \
	    /^Installing collected/ { print "  unpacking"; fflush() }'
	@if [ -e $(VENV)/pip-failed ]; then rm -f $(VENV)/pip-failed; exit 1; fi
	@touch $@
endef

$(RUN): setup.cfg pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "cachefsm needs Python 3.10 or newer: make PYTHON=python3.12 …" >&2; exit 1; }; \
	  echo "Making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	$(call install,Installing what cachefsm needs into $(VENV),.)

$(DEV): $(RUN)
	$(call install,Installing the tools for tests and checks into $(VENV),.[dev])
