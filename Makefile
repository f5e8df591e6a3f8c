# Development commands of the project. They need Python 3.11+, git and make. uv is installed into .uv/ if it is missing; if you have
# uv, you can also run `uv run python main.py ...` directly.
PYTHON ?= python3
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
RUN := $(UV) run --quiet
CONFIG ?= configs/digits_ternary.yaml
N ?= 100
SEED ?= 0

.PHONY: help setup fit test test-all soak lint format bench clean

help:  ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

setup: $(filter .uv/bin/uv,$(UV))  ## install uv if it is missing, and all packages into .venv
	$(UV) sync --quiet --all-groups --compile-bytecode

fit: setup  ## train CONFIG (default: a ternary network on real digits, 2 minutes on 2 cores), then test it
	$(RUN) python main.py fit --config $(CONFIG) --test_after_fit

test: setup  ## run the default tests, under 4 minutes on 2 cores
	$(RUN) pytest -q -n auto --dist loadfile

test-all: setup  ## run all tests, including the slow ones, under 30 minutes
	$(RUN) pytest -q -n auto --dist loadfile -m "slow or not slow"

soak: setup  ## stop N random runs at random moments and resume them; each must end like the unbroken run (100: 30 minutes)
	$(RUN) python -m tests.soak --runs $(N) --seed $(SEED)

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
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache build *.egg-info
