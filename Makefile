# Every target makes .venv from the lock when it is missing: nothing has to be set up by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROFILE ?= standard
STAMP := $(VENV)/.installed

.PHONY: help conform test test-kit mutants bench lint coverage generate clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("openmoe-spec needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

conform: $(STAMP) ## the main job: production against the reference (PROFILE=quick|standard|exhaustive)
	$(BIN)/openmoe conform --profile $(PROFILE)

mutants: $(STAMP) ## plant every known bug and print which clause catches it
	$(BIN)/openmoe conform --mutants --profile $(PROFILE)

test: lint ## lint, types, generated files, all tests, the kill matrix
	$(BIN)/python -m pytest -n 2

lint: $(STAMP) ## style, types, import rule, and that generated files match SPEC.md
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m openmoe_tools.generate --check

generate: $(STAMP) ## rewrite clauses.json and COVERAGE.md from SPEC.md
	$(BIN)/python -m openmoe_tools.generate

bench: $(STAMP) ## ratios to the matrix-multiplication bound, printed and written to production/BENCHMARKS.md
	$(BIN)/python -m openmoe_production.bench

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
