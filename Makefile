# Every target sets up what it needs: `make demo` and `make test` work on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=
BIN := .venv/bin
BOOTSTRAP := $(PYTHON) tools/bootstrap.py

# Without compiled bytecode every process would spend many seconds compiling torch and its neighbours again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-quick lint format docs bench doctor clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup: ## Make .venv and install stimg with everything a developer needs
	$(BOOTSTRAP) dev

demo: ## Run the whole walk on an example slide; results in stimg-results/
	$(BOOTSTRAP)
	$(BIN)/stimg demo --out stimg-results

test: ## Run every test
	$(BOOTSTRAP) test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

test-quick: ## Run the tests without the slow ones
	$(BOOTSTRAP) test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow" $(PYTEST_ARGS)

lint: ## Check style, types and import contracts
	$(BOOTSTRAP) dev
	@status=0; for tool in "ruff check ." "ruff format --check ." mypy lint-imports; do \
	  echo "$(BIN)/$$tool"; $(BIN)/$$tool || status=1; done; exit $$status

format: ## Repair the style
	$(BOOTSTRAP) dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: ## Build the documentation, warnings being errors; docs/_build/html/index.html
	$(BOOTSTRAP) doc
	$(BIN)/python -m sphinx -M html docs docs/_build -W --keep-going

bench: ## Run the benchmarks; results in benchmarks/results/
	$(BOOTSTRAP) bench
	mkdir -p benchmarks/results
	set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

doctor: ## Say what is installed, what is missing and what does not fit
	$(BOOTSTRAP)
	$(BIN)/stimg doctor

clean: ## Remove what the targets made, but not .venv nor results
	rm -rf docs/_build docs/generated docs/tutorials build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
