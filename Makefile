# The jobs of this project. They need Python 3.11+, git and make; uv is brought into .uv/ where it is missing, and who has it
# uses `uv run python main.py ...` directly.
PYTHON ?= python3
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
RUN := $(UV) run --quiet
CONFIG ?= configs/digits_ternary.yaml

.PHONY: help setup fit test test-all lint format bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

setup: $(filter .uv/bin/uv,$(UV))  ## bring uv where it is missing, and all packages into .venv
	$(UV) sync --quiet --all-groups

fit: setup  ## train CONFIG (default: a ternary network on real digits, 2 minutes on 2 cores), then test it
	$(RUN) python main.py fit --config $(CONFIG) --test_after_fit

test: setup  ## the default tests, some 4 minutes on 2 cores
	$(RUN) pytest -q -n auto --dist loadfile

test-all: setup  ## all tests, the slow ones included, under 30 minutes
	$(RUN) pytest -q -n auto --dist loadfile -m "slow or not slow"

lint: setup  ## ruff and mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: setup  ## let ruff mend what it can
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: setup  ## measure our step and our loaders beside their peers
	$(RUN) python -m benchmarks.step_overhead
	$(RUN) python -m benchmarks.loader
	$(RUN) python -m benchmarks.folder_pipeline
	$(RUN) python -m benchmarks.cached_head

clean:  ## remove what the targets made, but not runs/
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache build *.egg-info
