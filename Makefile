# Each target sets up .venv with what it needs and does its work: nothing else has to be done first.
#
#   make test ARGS="-k closed"       further arguments for pytest
#   make demo DIALOGUES=my.jsonl     other dialogues to import
#   make example PORT=8000           the chat of examples/, at this port
#   make bench QUICK=1               in three minutes; ARGS="--only ours,bare" for some contenders
#   make fuzz STEPS=100000 SEED=7     so many steps of random programs, of this seed
#   make failover RUNS=10            kill a primary so many times
#   make erasure MESSAGES=1000000    erase a user of so many messages while others write
#   make soak MINUTES=10             load and faults for so long
#   make test PYTHON=/opt/py/python  another Python than the first one found

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo example example-test example-shots test fuzz failover erasure soak bench bench-quick \
	bench-report docs lint types audit \
	clean python

VENV := .venv
BENCH := .venv-bench
EXAMPLE := .venv-example
DOCS := .venv-docs
SITE := build/docs
BIN := $(VENV)/bin
ARGS ?=
STEPS ?= 20000
RUNS ?= 10
MINUTES ?= 10
MESSAGES ?= 1000000

# The first Python that is new enough and can make an environment: a name on PATH proves nothing.
NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
	if $$name -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then command -v $$name; break; fi; done)

DIALOGUES ?= $(firstword $(wildcard ../shared/data/sgd_2000.jsonl.gz examples/dialogues.jsonl))

help:  ## say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# An environment that has all already is good enough for the demo.
demo: $(if $(wildcard $(VENV)/.test $(VENV)/.dev),,$(VENV)/.demo)  ## see the store at work, on a server of its own
	@$(BIN)/conversation-store demo $(DIALOGUES)

example: $(if $(wildcard $(EXAMPLE)/.test),,$(EXAMPLE)/.serve)  ## serve the chat of examples/, on a server of its own
	@$(EXAMPLE)/bin/python -m chat

example-test: $(EXAMPLE)/.test  ## test that chat, in a browser, too
	$(EXAMPLE)/bin/python -m pytest examples/chat $(ARGS)

example-shots: $(EXAMPLE)/.test  ## take the pictures of it that are in docs/images
	CHAT_SHOTS=docs/images $(EXAMPLE)/bin/python -m pytest -q examples/chat -k pictures

test: $(VENV)/.test  ## run every test, on a real server
	$(BIN)/python -m pytest $(ARGS)

fuzz: $(VENV)/.test  ## run random programs on the twin and on PostgreSQL side by side, STEPS of them
	@PYTHONPATH=tests $(BIN)/python -m fuzz --steps $(STEPS) $(if $(SEED),--seed $(SEED))

failover: $(VENV)/.test  ## kill a primary under load and promote its replica, RUNS times
	$(BIN)/python tests/failover.py --runs $(RUNS)

erasure: $(VENV)/.test  ## erase a user of MESSAGES while others write; kill it in the middle
	$(BIN)/python tests/erasure.py --messages $(MESSAGES)

soak: $(BENCH)/.bench  ## load a server for MINUTES, with faults all along; draw what happened
	@$(BENCH)/bin/python tests/soak.py --minutes $(MINUTES) --out benchmarks/results/soak.json; \
		end=$$?; $(BENCH)/bin/python -m benchmarks.soak_plot && exit $$end

bench: $(BENCH)/.bench  ## measure the store beside others, on a durable server: 20 minutes
	@$(BENCH)/bin/python -m benchmarks $(if $(QUICK),--quick) $(ARGS)
	@$(BENCH)/bin/python -m benchmarks.overhead $(if $(QUICK),--quick)
	@$(BENCH)/bin/python -m benchmarks.copying $(if $(QUICK),--quick)
	@$(BENCH)/bin/python -m benchmarks report

bench-quick:  ## the same in three minutes, less exact
	@$(MAKE) --no-print-directory bench QUICK=1

bench-report: $(BENCH)/.bench  ## make docs/benchmarks.md anew from benchmarks/results
	@$(BENCH)/bin/python -m benchmarks report

docs: $(DOCS)/.docs  ## make the documentation site, and check it: no network is needed but to install
	@rm -rf $(SITE)
	@$(DOCS)/bin/python -m sphinx -W -n --keep-going -q -d build/doctrees -E -c docs . $(SITE)
	@$(DOCS)/bin/python tests/site_check.py $(SITE)

lint: $(VENV)/.dev  ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# The example is checked beside the libraries that it needs, by the checkers that are there.
types: $(VENV)/.dev $(EXAMPLE)/.test  ## check types, with mypy and pyright
	$(BIN)/mypy src tests benchmarks
	$(BIN)/pyright --pythonpath $(BIN)/python
	cd examples/chat && ../../$(BIN)/mypy --python-executable ../../$(EXAMPLE)/bin/python chat tests
	$(BIN)/pyright --project examples/chat --pythonpath $(EXAMPLE)/bin/python

audit: $(VENV)/.dev  ## ask for known weaknesses of what an installation brings
	@$(BIN)/python tests/audit.py

clean:  ## remove the environment and what the tools left
	rm -rf $(VENV) $(BENCH) $(EXAMPLE) $(DOCS) dist build .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache \
		.ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@echo $(PYTHON)

# Makes an environment where there is none that works.
define with_pip
$(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
	test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv and ensurepip here (Debian:" \
		"apt-get install python3-venv). Name one: make PYTHON=/path/to/python" >&2; exit 1; }; \
	echo "Making $(1) with $(PYTHON)"; $(PYTHON) -m venv --clear $(1); }
endef

$(VENV)/.demo: EXTRAS := cli,embedded
$(VENV)/.test: EXTRAS := test
$(VENV)/.dev: EXTRAS := dev

# Contenders bring many libraries, so they get an environment of their own; pip is upgraded there,
# for older ones know no dependency groups.
$(BENCH)/.bench: pyproject.toml
	@$(call with_pip,$(BENCH))
	@echo "Installing those that are measured into $(BENCH)"
	@$(BENCH)/bin/python -m pip install -qq --upgrade 'pip>=25.1'
	@$(BENCH)/bin/python -m pip install -qq --editable '.[embedded]' --group bench
	@touch $@

$(EXAMPLE)/.serve: EXTRAS :=
$(EXAMPLE)/.test: EXTRAS := [test]
$(EXAMPLE)/.serve $(EXAMPLE)/.test: pyproject.toml examples/chat/pyproject.toml
	@$(call with_pip,$(EXAMPLE))
	@echo "Installing the chat of examples/ into $(EXAMPLE)"
	@$(EXAMPLE)/bin/python -m pip install -qq --disable-pip-version-check --editable . --editable 'examples/chat$(EXTRAS)'
	@touch $@

# Frameworks are not needed to read what is made for them.
$(DOCS)/.docs: pyproject.toml
	@$(call with_pip,$(DOCS))
	@echo "Installing what makes the documentation site into $(DOCS)"
	@$(DOCS)/bin/python -m pip install -qq --upgrade 'pip>=25.1'
	@$(DOCS)/bin/python -m pip install -qq --no-compile --editable '.[cli,otel,pytest]' --group docs
	@touch $@

$(VENV)/.demo $(VENV)/.test $(VENV)/.dev: pyproject.toml
	@$(call with_pip,$(VENV))
	@echo "Installing conversation-store[$(EXTRAS)] into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@
