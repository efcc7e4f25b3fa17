# Needs make, pip and a Python from 3.11 to 3.14; no database, no Docker, no compiler, no uv.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# Our own environment, whatever the shell has activated.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help venv demo test slow system check lint bench clean
.DELETE_ON_ERROR:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## make .venv with everything that development needs

demo: $(INSTALLED) ## run the demonstration: a server, workers, tasks
	$(BIN)/pgqueue demo

test: $(INSTALLED) ## run the tests, but for the slow ones
	$(BIN)/python -m pytest -m "not slow"

slow: $(INSTALLED) ## run the slow tests: soaks, failpoints, takeovers
	$(BIN)/python -m pytest -m slow

SYSTEM := $(lastword $(sort $(wildcard /usr/lib/postgresql/*/bin)))

system: $(INSTALLED) ## run the tests that need a database on the PostgreSQL of this system, if it has one
	$(if $(SYSTEM),PGQUEUE_TEST_BINDIR=$(SYSTEM) $(BIN)/python -m pytest -m "not slow" tests/sql tests/whole \
	    --ignore=tests/whole/test_embedded.py --ignore=tests/whole/test_demo.py,@echo "No PostgreSQL in /usr/lib/postgresql.")

check: lint ## formatting, lint, types and the fast tests
	$(BIN)/python -m pytest -m "not slow"

lint: $(INSTALLED) ## formatting, lint and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

bench: $(INSTALLED) ## measure drain, enqueue and latency; `pgqueue bench` has more
	$(BIN)/pgqueue bench drain
	$(BIN)/pgqueue bench enqueue
	$(BIN)/pgqueue bench latency

clean: ## remove the environment and everything that tools have left
	rm -rf .venv .venv-peers .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Written last, so that an interrupted installation is repeated; older than pyproject.toml, it is repeated too.
$(INSTALLED): pyproject.toml
	@test -w . || { echo "This folder cannot be written by $$(id -un): use a copy of your own." >&2; exit 1; }
	@$(MAKE) --no-print-directory .venv/bin/pip
	@echo "Installing pgqueue and its tools into .venv ..."
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

# Debian's python3 comes without ensurepip, so `venv` fails there; the system's pip then installs the other one.
# An interpreter is tried, not only found: pyenv's shims exist for versions that are not there.
.venv/bin/pip:
	@for python in "$(PYTHON)" python3.14 python3.13 python3.12 python3.11; do \
	    "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null || continue; \
	    "$$python" -m venv --clear .venv >/dev/null 2>&1 && exit 0; \
	    "$$python" -m venv --clear --without-pip .venv && \
	        "$$python" -m pip --python .venv/bin/python install --quiet pip && exit 0; \
	    echo "$$python can make no environment: install its venv package or pip (Debian: python3-venv)." >&2; \
	    exit 1; \
	done; \
	echo "pgqueue needs Python 3.11, 3.12, 3.13 or 3.14: make PYTHON=/path/to/python3" >&2; \
	exit 1
