# One word per chore. `run` and `test` set up all that they need: git, make and python3-venv are enough.

# What .venv is made with. Another one makes it anew, as does a change of the locks.
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/made-by-$(subst /,-,$(PYTHON)).stamp
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet
LOCKED := --only-binary :all: --require-hashes
# A process of tests for each core: many wait for other processes. What a file of system tests starts, it starts once.
SPREAD := --numprocesses auto --dist
COMPILE := CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --annotation-style line

.PHONY: run test test-system test-long check bench dashboards lock clean
.NOTPARALLEL:

run: $(VENV)/run.stamp  ## the whole relay with a built-in upstream: prints addresses, a key and lines to try
	$(BIN)/relay demo

test: $(VENV)/dev.stamp  ## everything that needs no package of Debian's
	$(BIN)/python -m pytest $(SPREAD) worksteal -m "not system and not long"

test-system: $(VENV)/dev.stamp  ## what needs Debian's packages (.ci/run installs them)
	$(BIN)/python -m pytest $(SPREAD) loadfile -m system

test-long: $(VENV)/dev.stamp  ## the properties, for longer
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -m long

check: $(VENV)/dev.stamp  ## types and style
	$(BIN)/mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/dev.stamp  ## the relay beside its peers, then what moderation costs. QUICK=--quick: less; ROUTER=--router: vllm-router too
	$(BIN)/python -m bench $(QUICK) $(ROUTER)
	$(BIN)/python -m bench.moderation $(QUICK)

dashboards: $(VENV)/dev.stamp  ## write grafana/dashboards from grafana/build
	$(BIN)/python -m grafana.build

# With the oldest Python that is served: it needs the most. `make lock UPGRADE=--upgrade` takes the newest of everything.
lock: $(VENV)/dev.stamp  ## pin every package with its hashes
	$(COMPILE) $(UPGRADE) --all-extras --all-build-deps -o requirements-dev.lock pyproject.toml
	$(COMPILE) $(UPGRADE) -c requirements-dev.lock -o requirements.lock pyproject.toml
	$(COMPILE) $(UPGRADE) -c requirements-dev.lock --all-build-deps --only-build-deps -o requirements-build.lock pyproject.toml
	$(COMPILE) $(UPGRADE) -c requirements-dev.lock -o requirements-users.lock tests/e2e/users/requirements.in

$(MADE): requirements.lock requirements-build.lock requirements-dev.lock
	@$(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo >&2 \
	"$(PYTHON) is not a Python 3.11 or newer with venv: apt-get install python3-venv, or make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/run.stamp: $(MADE) pyproject.toml
	$(INSTALL) $(LOCKED) -r requirements-build.lock -r requirements.lock
	$(INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/dev.stamp: $(MADE) pyproject.toml
	$(INSTALL) $(LOCKED) -r requirements-dev.lock
	$(INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@ $(VENV)/run.stamp

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/out
