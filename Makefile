# make demo and make test do all the set-up on a machine with python3, git and make.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
BIN = $(VENV)/bin

.PHONY: demo test frameworks lint bench coverage wheel-test clean

$(VENV)/made: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,lint,demo,bench]'
	@touch $@

demo: $(VENV)/made
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

test: $(VENV)/made
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder --durations 40

# The libraries that write the formats we read, and MLflow's server, some GB of them: tests that need one are left out
# without it.
# lpips ships real weights in two versions; it is not run, so what it needs is not installed.
frameworks: $(VENV)/made
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[test,frameworks]'
	$(BIN)/python -m pip install --quiet --no-deps lpips==0.1.4

lint: $(VENV)/made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

coverage: $(VENV)/made
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine
	$(BIN)/coverage report

wheel-test: $(VENV)/made
	PYTHON=$(PYTHON) sh tests/wheel.sh

bench: $(VENV)/made
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/run.py
	@cd benchmarks && PATH="$(CURDIR)/$(BIN):$$PATH" ../$(BIN)/python exact.py
	@cd benchmarks && PATH="$(CURDIR)/$(BIN):$$PATH" ../$(BIN)/python merge.py
	@$(BIN)/python -m benchmarks.registry

clean:
	rm -rf $(VENV) .demo .bench build dist
