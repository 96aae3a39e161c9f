# Each target sets up .venv with what it needs and does its work: nothing else has to be done first.
#
#   make test ARGS="-k closed"       further arguments for pytest
#   make demo DIALOGUES=my.jsonl     other dialogues to import
#   make bench ARGS="--only ours,bare"  some contenders; see benchmarks/README.md
#   make test PYTHON=/opt/py/python  another Python than the first one found

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test bench bench-quick bench-report lint types clean python

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# The first Python that is new enough and can make an environment: a name on PATH proves nothing.
NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
	if $$name -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then command -v $$name; break; fi; done)

DIALOGUES ?= $(firstword $(wildcard ../shared/data/sgd_2000.jsonl.gz examples/dialogues.jsonl))

help:  ## say what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# An environment that has all already is good enough for the demo.
demo: $(if $(wildcard $(VENV)/.test $(VENV)/.dev),,$(VENV)/.demo)  ## see the store at work, on a server of its own
	@$(BIN)/conversation-store demo $(DIALOGUES)

test: $(VENV)/.test  ## run every test, on a real server
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev  ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.dev  ## check types, with mypy and pyright
	$(BIN)/mypy src tests
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:  ## remove the environment and what the tools left
	rm -rf $(VENV) dist build .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@echo $(PYTHON)

$(VENV)/.demo: EXTRAS := cli,embedded
$(VENV)/.test: EXTRAS := test
$(VENV)/.dev: EXTRAS := dev

$(VENV)/.demo $(VENV)/.test $(VENV)/.dev: pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv and ensurepip here (Debian:" \
			"apt-get install python3-venv). Name one: make PYTHON=/path/to/python" >&2; exit 1; }; \
		echo "Making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing conversation-store[$(EXTRAS)] into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@
