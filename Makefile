# The verbs of this project; people, hooks and CI use the same ones.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PARALLEL := -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

help:  ## list the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $(INSTALLED)

install: $(INSTALLED)  ## make the environment

demo: $(INSTALLED)  ## render a small collection and run the whole pipeline on it
	$(BIN)/python -m demo workspace/demo-collection
	$(BIN)/har run params/demo.yaml --summary workspace/demo-summary.json

check: lint  ## check style and types, and run the unit tests (3 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL) tests/pipeline_lib tests/demo

test: $(INSTALLED)  ## run the tests (under 8 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: test  ## run all tests, the slow trials too, one by one and with their times
	$(BIN)/python -m pytest -m slow --durations=0 --durations-min=1

up: $(INSTALLED)  ## start the Prefect server, the MLflow server and the deployments
	$(BIN)/har up

down: $(INSTALLED)  ## stop what `make up` started
	$(BIN)/har down

lint: $(INSTALLED)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## measure speed on this machine (5 minutes)
	$(BIN)/python -m benchmarks

clean:  ## remove the environment and caches; the workspace stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build *.egg-info

.PHONY: help install demo check test test-all up down lint bench clean
