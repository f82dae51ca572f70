# Targets for users and developers. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?= -n auto --dist worksteal
BENCH_ARGS ?=

.PHONY: help install demo up test check format docs lock bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Install the project and its dependencies into .venv, at the lock's versions

$(STAMP): pyproject.toml setup.py requirements/lock.txt $(wildcard worker/merging/native/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is required: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
# --no-compile: 18,000 files take most of a minute; those that are imported are compiled then.
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c requirements/lock.txt -e '.[worker,ctranslate2,vad,embedded,dev]'
	@touch $@

demo: $(STAMP) ## Find the best merge of the sample experts over HTTP, and print the study's table
	$(BIN)/python scripts/demo.py

up: $(STAMP) ## Run the service: queue, worker and API, until Ctrl-C
	$(BIN)/afluente up

test: $(STAMP) ## Run every test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(STAMP) ## Run what CI runs: format, lint, types, import rules, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(PYTEST_ARGS)

format: $(STAMP) ## Format, and fix what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## Generate docs/settings.md, docs/methods.md and a table of docs/evaluation.md from the code
	$(BIN)/python scripts/docs.py

lock: ## Regenerate requirements/lock.txt from pyproject.toml in a clean environment
	$(PYTHON) scripts/lock.py

bench: $(STAMP) ## Every method against its peer, as ratios (BENCH_ARGS="--methods soup --repeats 5")
	$(BIN)/python -m benchmarks.bench $(BENCH_ARGS)

clean: ## Remove caches and builds (not .venv, not data)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
