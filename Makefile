# make demo   the main job from nothing: needs Python 3.10 to 3.12 with venv, make and PyPI; no GPU, no Docker
# make test   lint, types and every test that needs no GPU

VENV ?= .venv
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)
BIN := $(VENV)/bin
SOURCES := pyproject.toml Makefile
PYTEST_ARGS ?= --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test clean
.DELETE_ON_ERROR:

demo: $(VENV)/.server
	@PATH="$(abspath $(BIN)):$$PATH" sh examples/demo.sh

test: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PYTEST_ARGS)

$(VENV)/.server: $(SOURCES)
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[server]'
	@touch $@

$(VENV)/.dev: $(VENV)/.server $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[server,grpc,rtx,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
