# `make demo` and `make test` install what they need in .venv, once.

PYTHON ?= python3
BIN := .venv/bin
RUN := runs/shapes

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-exhaustive lint audit format docs bench bench-peers faults soak clean

help:
	@echo "make demo       run the pipeline on the embedded dataset in $(RUN); takes minutes, resumes"
	@echo "make test       all tests except the exhaustive ones: 25 minutes on two cores"
	@echo "make test-fast  only tests that take seconds"
	@echo "make test-exhaustive  whole pipelines, killed and on several processes; models of Base size; the commands in the docs"
	@echo "make lint       check formatting, lint, types and the direction of imports"
	@echo "make audit      check the requirements for known vulnerabilities; needs the network"
	@echo "make format     format the code"
	@echo "make docs       build the documentation: build/docs/index.html"
	@echo "make bench      measure the performance targets: about 13 minutes, a table in runs/bench"
	@echo "make bench-peers  time explanations beside lxt, zennit, captum and plain PyTorch, which it installs in .peers: a table"
	@echo "make faults     run the small pipeline under kills at 30 random moments, full disks and other faults: half an hour"
	@echo "make soak       run the pipelines of VOC at 448, killed in every stage: two hours on two cores"
	@echo "make clean      remove .venv, .peers, caches and builds; keep runs/ and data/"

demo: .venv/demo-stamp
	$(BIN)/python train.py --config configs/shapes.py --workdir $(RUN)
	$(BIN)/python evaluate.py --config configs/shapes.py --workdir $(RUN)

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/dev-stamp
	$(PYTEST) -m "not exhaustive"

test-fast: .venv/dev-stamp
	$(PYTEST) -m "not slow"

test-exhaustive: .venv/dev-stamp
	$(PYTEST) -m exhaustive

lint: .venv/dev-stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# pip-audit has its own environment: it brings a dozen packages that nothing else needs.
audit: | .venv/stamp
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install -qq --disable-pip-version-check pip-audit==2.10.1
	.venv/audit/bin/pip-audit --strict -r requirements.txt -r requirements-dev.txt

format: .venv/dev-stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/dev-stamp
	$(BIN)/sphinx-build -q -n -W --keep-going docs build/docs
	@echo "build/docs/index.html"

faults: .venv/dev-stamp
	$(BIN)/python -m tests.faults

soak: .venv/dev-stamp
	$(BIN)/python -m tests.soak

bench: .venv/dev-stamp
	$(BIN)/python -m benchmarks

# PyTorch's packages have their own environment: lxt wants an older transformers than the tests.
bench-peers: .venv/dev-stamp .peers/stamp
	$(BIN)/python -m benchmarks.peers --python .peers/bin/python

.peers/stamp: benchmarks/peers.txt
	@echo "Installing benchmarks/peers.txt in .peers"
	$(PYTHON) -m venv .peers
	@.peers/bin/python -m pip install -qq --disable-pip-version-check -r benchmarks/peers.txt
	@touch $@

clean:
	rm -rf .venv .peers .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is newer than the requirements it installed, so a second call does nothing.
# The dev requirements include requirements.txt.
.venv/stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vitx needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1):" \
	    "run make PYTHON=python3.11" >&2; exit 1; }
	@echo "Setting up .venv"
	$(PYTHON) -m venv .venv
	@touch $@

.venv/demo-stamp: requirements.txt | .venv/stamp
	@echo "Installing requirements.txt in .venv"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/dev-stamp: requirements.txt requirements-dev.txt | .venv/demo-stamp
	@echo "Installing requirements-dev.txt in .venv"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements-dev.txt
	@touch $@
