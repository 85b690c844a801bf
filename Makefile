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

check: $(INSTALLED)  ## check style and types, and run the quick unit tests (under 90 seconds on 2 cores)
	$(MAKE) --jobs 2 lint unit

unit: $(INSTALLED)  ## run the quick unit tests
	$(BIN)/python -m pytest -m "not slow and not integration" $(PARALLEL) tests/pipeline_lib tests/demo tests/test_imports.py

test: $(INSTALLED)  ## run the tests (5 to 8 minutes on 2 cores)
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

docs: $(INSTALLED)  ## draw the import graph and build the docs site into site/
	$(BIN)/python docs/draw_imports.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

image:  ## build the container image (docs/scaling.md)
	docker build --tag har .

pins: $(INSTALLED)  ## write constraints.txt anew after a change of dependencies; pins that still fit stay
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-annotate --quiet \
		--custom-compile-command "make pins" --output-file constraints.txt

clean:  ## remove the environment and caches; the workspace stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build site *.egg-info

.PHONY: help install demo check unit test test-all up down lint bench docs image pins clean
