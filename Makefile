# make demo   set up, train, bind, build, run, call
# make unit   tests without an engine, a network, a browser or Ray
# make test   all tests
# make lint   ruff, mypy
# make bench  the numbers in docs/performance.md
# make docs   the documentation as a site, in build/docs
# make pictures  its drawings and screenshots, from real commands
# make notebooks  runs examples/notebooks and keeps the outputs

PYTHON ?= python3
VENV   ?= .venv
PARALLEL ?= -n auto --dist loadgroup --no-loadscope-reorder
BIN    := $(CURDIR)/$(VENV)/bin
STAMP  := $(VENV)/.installed
SHELL  := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

export TESTCONTAINERS_RYUK_DISABLED := true
# Thousands of processes would each compile what they import.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup engine chromium demo test unit lint bench docs pictures notebooks clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	# Compiled: tests start hundreds of processes that import Metaflow, Ray and scikit-learn. Exact:
	# what is no longer listed goes.
	$(BIN)/uv pip install --quiet --exact --compile-bytecode --python $(BIN)/python \
	  pip --editable '.[dev]'
	touch $@

# A Docker engine, and the base image for this minor version of Python.
engine: setup
	tests/support/engine
	tests/support/base-image "$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')"

# For the tests of what people look at.
chromium:
	tests/support/chromium

demo: engine
	PATH="$(BIN):$$PATH" examples/iris/demo.sh

# All tests, with real engines, clusters and servers; a module's tests run in one process.
test: engine chromium
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

# Tests without an engine, a network, Ray, a browser, servers or many processes; with fewer examples.
unit: setup
	$(BIN)/python -m pytest $(PARALLEL) -m "not (browser or docker or e2e or index or ray or slow)" --hypothesis-profile=quick $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: engine
	$(BIN)/python -m benchmarks

# In an environment of its own, which has no test dependencies: quick on a fresh clone.
docs: $(VENV)-docs/.installed
	$(VENV)-docs/bin/python -m sphinx -E -b html -W -n --keep-going -q docs build/docs
	@echo build/docs/index.html

$(VENV)-docs/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)-docs/bin/uv pip install --quiet --python $(VENV)-docs/bin/python --editable '.[docs]'
	touch $@

# The drawings take Mermaid from npm. One kind alone: make pictures PICTURES=drawings
pictures: engine chromium
	$(BIN)/uv pip install --quiet --python $(BIN)/python pillow pyte
	PATH="$(BIN):$$PATH" PYTHONPATH=. $(BIN)/python docs/pictures.py $(PICTURES)

notebooks: setup
	$(BIN)/python examples/notebooks/execute.py $(NOTEBOOKS)

clean:
	rm -rf $(VENV) $(VENV)-docs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
