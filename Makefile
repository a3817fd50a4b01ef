# Each target installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# An index of other builds of torch; https://download.pytorch.org/whl/cpu has those without CUDA.
TORCH_INDEX ?=
TORCH_SIZE := $(if $(TORCH_INDEX),from $(TORCH_INDEX),5.6 GB on disk with its CUDA libraries)
BENCH_DATA ?= ../shared/data/fruits_nuts

# One process more than there are cores, each of one thread; a file's tests stay in one process, and the
# dearest files come first (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder
# Else every process of the tests would compile them, with their assertions, again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-slow test-all lint docs bench clean

help:
	@echo "make install   a .venv with everything (about 7 GB: torch brings its CUDA libraries; about 2 GB"
	@echo "               with TORCH_INDEX=https://download.pytorch.org/whl/cpu, for machines without a GPU)"
	@echo "make demo      painted data -> shards -> training on two processes -> AP and a picture"
	@echo "make test      the quick tests"
	@echo "make test-slow what has to hold too before a change lands: torchrun, real data, torch.compile"
	@echo "make test-all  every test there is, before a release"
	@echo "make lint      ruff, mypy, codespell, readability of the docs"
	@echo "make docs      the documentation as a site in site/; a broken link or a missing docstring fails"
	@echo "make bench     the benchmarks that need no more than this machine"
	@echo "make clean     remove .venv, caches and the demo's folder"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "autotimm needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "1 of 3: an environment in $(VENV), and a new pip"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "2 of 3: torch: $(TORCH_SIZE); most of the time goes into this step, which prints nothing"
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch torchvision
	@echo "3 of 3: autotimm, all else that it needs, and the tools for its tests and pages: 1.4 GB"
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs,s3,deepspeed,tensorboard,export,video]'
	touch $@
	@echo "autotimm is installed: source $(BIN)/activate, then autotimm --help"

demo: install
	$(BIN)/python launch/demo.py --out demo

test: install
	$(PYTEST) -m "not slow and not release" --durations=10

test-slow: install
	$(PYTEST) -m "slow and not release" --durations=25

test-all: install
	$(PYTEST) --durations=25

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python docs/tools/readability.py

# Not --quiet, with which mkdocs does not count warnings and strict lets them pass.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install
	$(BIN)/python benchmarks/order.py
	$(BIN)/python benchmarks/coco_load.py
	$(BIN)/python benchmarks/shards.py
	$(BIN)/python benchmarks/stream.py
	$(BIN)/python benchmarks/equal_budget.py
	$(BIN)/python benchmarks/fruits_nuts.py --data $(BENCH_DATA)

clean:
	rm -rf $(VENV) demo build dist site .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
