# Development commands of the project. They need Python 3.11+, git and make. uv is installed into .uv/ if it is missing; if you have
# uv, you can also run `uv run python main.py ...` directly.
PYTHON ?= python3
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
RUN := $(UV) run --quiet
CONFIG ?= configs/digits_ternary.yaml
PY ?= 3.13
N ?= 100
SEED ?= 0

.PHONY: help setup fit test test-all test-oldest test-newest test-prerelease soak fuzz lint format bench clean

help:  ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 17

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

setup: $(filter .uv/bin/uv,$(UV))  ## install uv if it is missing, and all packages into .venv
	$(UV) sync --quiet --all-groups --compile-bytecode

fit: setup  ## train CONFIG (default: a ternary network on real digits, 2 minutes on 2 cores), then test it
	$(RUN) python main.py fit --config $(CONFIG) --test_after_fit

test: setup  ## run the default tests, under 4 minutes on 2 cores
	$(RUN) pytest -q -n auto --dist loadfile

test-all: setup  ## run all tests, including the slow ones
	$(RUN) pytest -q -n auto --dist loadfile -m "slow or not slow"

# An environment of its own in .venvs/NAME with other versions, and the default tests in it: $(call in_versions,NAME,PYTHON,FLAGS).
# `uv pip` and not `uv sync`, which would resolve uv.lock for these versions too. It prints what was installed.
define in_versions
	$(UV) venv --quiet --clear --python $(2) .venvs/$(1)
	$(UV) pip install --quiet --python .venvs/$(1) $(3) --editable . --group dev --group bucket
	@$(UV) pip list --quiet --python .venvs/$(1) --format freeze | tee .venvs/$(1).txt
	.venvs/$(1)/bin/python -m pytest -q -n auto --dist loadfile
endef

test-oldest: $(filter .uv/bin/uv,$(UV))  ## run the default tests on Python 3.11 and the oldest versions that pyproject.toml admits
	$(call in_versions,oldest,3.11,--resolution lowest-direct)

test-newest: $(filter .uv/bin/uv,$(UV))  ## run the default tests on the newest versions, Python 3.13 or that of PY=3.12
	$(call in_versions,newest,$(PY),--upgrade)

test-prerelease: $(filter .uv/bin/uv,$(UV))  ## run the default tests on the newest pre-releases; may fail
	$(call in_versions,prerelease,$(PY),--upgrade --prerelease allow)

soak: setup  ## stop N random runs at random moments and resume them; each must end like the unbroken run (100: 30 minutes)
	$(RUN) python -m tests.soak --runs $(N) --seed $(SEED)

fuzz: setup  ## read N mutated inputs of each format; each must be read, or refused in one line, within limits of time and memory
	$(RUN) python -m tests.fuzz --inputs $(N) --seed $(SEED)

lint: setup  ## run ruff and mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: setup  ## apply ruff's automatic fixes and formatting
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: setup  ## compare our training step and loaders with other implementations
	$(RUN) python -m benchmarks.step_overhead
	$(RUN) python -m benchmarks.loader
	$(RUN) python -m benchmarks.folder_pipeline
	$(RUN) python -m benchmarks.cached_head

clean:  ## remove everything that these targets created, except runs/
	rm -rf .venv .venvs .uv .mypy_cache .ruff_cache .pytest_cache build *.egg-info
