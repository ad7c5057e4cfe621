# One word per chore. `run` and `test` set up all that they need (git, make and python3-venv are enough).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SEEDS ?= 20

.PHONY: run test test-system test-long check bench lock clean

run: $(VENV)/run.stamp  ## the whole relay with a built-in upstream: prints addresses, a key and lines to try
	$(BIN)/relay demo

test: $(VENV)/dev.stamp  ## everything that needs no package of Debian's
	$(BIN)/python -m pytest -m "not system and not long"

test-system: $(VENV)/dev.stamp  ## what needs Debian's packages (.ci/run installs them)
	$(BIN)/python -m pytest -m system

test-long: $(VENV)/dev.stamp  ## the properties, for longer
	$(BIN)/python -m pytest -m long

check: $(VENV)/dev.stamp  ## types and style
	$(BIN)/mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/dev.stamp  ## the relay beside nginx, as ratios of one run
	$(BIN)/python -m bench

lock: $(VENV)/dev.stamp  ## pin every package with its hashes
	$(BIN)/pip-compile -q --strip-extras --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate -o requirements.lock pyproject.toml
	$(BIN)/pip-compile -q --strip-extras --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate --allow-unsafe --all-extras -c requirements.lock -o requirements-dev.lock pyproject.toml

$(VENV)/run.stamp: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --only-binary :all: --require-hashes -r requirements.lock
	$(PIP) install -q --no-deps -e .
	touch $@

$(VENV)/dev.stamp: requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --only-binary :all: --require-hashes -r requirements-dev.lock
	$(PIP) install -q --no-deps --no-build-isolation -e .
	touch $@ $(VENV)/run.stamp

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/out
