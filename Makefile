# Every target makes .venv from the lock when it is missing: nothing has to be set up by hand.
PYTHON ?= python3
PROFILE ?= standard
RUNS ?= runs
BIN := .venv/bin
STAMP := .venv/.installed
KIT_STAMP := .venv-kit/.installed

.PHONY: help conform test test-kit mutants train audit bench lint generate clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

# $(1): folder, $(2): lock
define install
	$(PYTHON) -c 'import sys; sys.exit("openmoe-spec needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(2)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $(1)/.installed
endef

$(STAMP): requirements.lock pyproject.toml
	$(call install,.venv,requirements.lock)

$(KIT_STAMP): requirements-kit.lock pyproject.toml
	$(call install,.venv-kit,requirements-kit.lock)

conform: $(STAMP) ## the main job: production against the reference (PROFILE=quick|standard|exhaustive)
	$(BIN)/openmoe conform --profile $(PROFILE)

mutants: $(STAMP) ## plant every known bug and print which clause catches it
	$(BIN)/openmoe conform --mutants

test: lint ## lint, types, import rule, generated files, and all tests, every mutant among them (EXHAUSTIVE=1: more kills)
	$(if $(EXHAUSTIVE),OPENMOE_EXHAUSTIVE=1) $(BIN)/python -m pytest -n 2

test-kit: $(KIT_STAMP) ## the conformance kit installed without JAX, on the NumPy examples
	! .venv-kit/bin/python -c 'import jax' 2>/dev/null
	cd conformance/examples && for example in numpy_router ul2_spans; do \
		../../.venv-kit/bin/openmoe conform --implementation $$example:Adapter --profile $(PROFILE) || exit 1; done

lint: $(STAMP) ## style, types, import rule, and that generated files match SPEC.md
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m openmoe_tools.generate --check

generate: $(STAMP) ## rewrite clauses.json and COVERAGE.md from SPEC.md
	$(BIN)/python -m openmoe_tools.generate

train: $(STAMP) ## the preset runs on this machine's own text: trained, fine-tuned, evaluated, and a sample (RUNS=folder)
	test -e $(RUNS)/small/run.toml || $(BIN)/openmoe prepare small $(RUNS)/small
	$(BIN)/openmoe train $(RUNS)/small
	$(BIN)/openmoe eval $(RUNS)/small
	test -e $(RUNS)/questions/run.toml || $(BIN)/openmoe prepare questions $(RUNS)/questions --start $(RUNS)/small
	$(BIN)/openmoe train $(RUNS)/questions
	$(BIN)/openmoe eval $(RUNS)/questions
	$(BIN)/openmoe generate $(RUNS)/small --text "def read(path):" --text "The function returns" --max-new-tokens 64 --temperature 0.8 --top-k 20

audit: $(STAMP) ## what the preset model's routers do with this machine's text: a report, and a summary (trained first if need be)
	test -e $(RUNS)/questions/checkpoints || $(MAKE) train
	test -e $(RUNS)/corpus/manifest.json || $(BIN)/openmoe data corpus $(RUNS)/corpus
	test -e $(RUNS)/audit/audit.json || $(BIN)/openmoe audit run $(RUNS)/small --corpus $(RUNS)/corpus --tokens 60000 --series \
		--against questions=$(RUNS)/questions --trace --out $(RUNS)/audit
	$(BIN)/openmoe audit report $(RUNS)/audit
	$(BIN)/openmoe audit summary $(RUNS)/audit

bench: $(STAMP) ## ratios to the bounds, printed and written to production/BENCHMARKS.md, tools/BENCHMARKS.md and tools/BENCHMARKS_AUDIT.md
	$(BIN)/openmoe bench --output production/BENCHMARKS.md
	$(BIN)/python -m openmoe_tools.checkpoints.bench --output tools/BENCHMARKS.md
	$(BIN)/python -m openmoe_tools.audit.bench --output tools/BENCHMARKS_AUDIT.md

clean: ## remove the environments and caches
	rm -rf .venv .venv-kit .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
