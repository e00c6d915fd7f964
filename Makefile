# Every target sets up what it needs; all it asks for is Python 3.11 or newer and make.
# A set-up is done again only when pyproject.toml or napari.yaml changes.
#
#   make test ARGS="-k motion"          options for pytest
#   make demo PYTHON=python3.12         another Python to make the environment from

PYTHON ?= python3
VENV := .venv
ARGS :=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check
HEADLESS := $(VENV)/.installed-headless
DEVELOPMENT := $(VENV)/.installed-development
DECLARED := pyproject.toml napari.yaml

# One thread in each linear algebra library: the work is already divided among Dask's threads.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
# A file of tests is one process's; those that need minutes come first (tests/conftest.py).
PROCESSES := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# The virtual screen speaks X11, also where the desktop speaks Wayland.
ifeq ($(shell uname -s),Linux)
VIRTUAL_SCREEN := QT_QPA_PLATFORM=xcb
endif

.PHONY: help setup demo test lint bench gui docs clean
.NOTPARALLEL:
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(DEVELOPMENT) ## set up everything for development in .venv
	@.ci/system-packages tests

demo: $(HEADLESS) ## analyse a sample movie without a window, into demo_output
	$(BIN)/napari-calcium demo --output demo_output

test: $(DEVELOPMENT) ## run all tests, those of the window on a virtual screen
	@.ci/system-packages tests
	$(ONE_THREAD) $(VIRTUAL_SCREEN) $(BIN)/python -m pytest $(PROCESSES) $(ARGS)

lint: $(DEVELOPMENT) ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(DEVELOPMENT) ## run every benchmarks/bench_*.py in turn
	@set -e; for script in benchmarks/bench_*.py; do \
	    if [ ! -e "$$script" ]; then echo "no benchmarks/bench_*.py to run" >&2; exit 1; fi; \
	    echo "== $$script"; \
	    $(BIN)/python "$$script" $(ARGS); \
	done

gui: $(DEVELOPMENT) ## open napari with the plugin
	@.ci/system-packages window
	$(BIN)/napari --with napari-calcium __all__

docs: $(DEVELOPMENT) ## build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

clean: ## remove what was built, but not .venv
	rm -rf build dist docs/_build demo_output
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(HEADLESS): $(DECLARED)
	@.ci/virtual-environment "$(VENV)" "$(PYTHON)"
	$(PIP_INSTALL) -e .
	@touch $@

$(DEVELOPMENT): $(DECLARED)
	@.ci/virtual-environment "$(VENV)" "$(PYTHON)"
	$(PIP_INSTALL) -e ".[all,dev]"
	@touch $(HEADLESS) $@
