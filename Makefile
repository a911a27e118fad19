# Two commands on a fresh machine: `make demo` and `make test`. Each sets up all that it needs in .venv.
#
#   TORCH_INDEX=URL   an index with torch's CPU build, where pip would else take a CUDA build of gigabytes
#   PYTHON=python3.12 another interpreter (3.10 or newer)
#   WORKERS=1         processes for the tests

PYTHON ?= python3
WORKERS ?= auto
SEED ?= 1
TORCH_INDEX ?=
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
       $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: demo demos test test-slow soak failures check format bench clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.demo
	$(VENV)/bin/python demos/mlp.py

# the paper's experiments, in their small settings
EXPERIMENTS := half_space mlp_width cnn_width resnet_batch_size lstm_language_model transformer_language_model optimizers references workloads
demos: $(VENV)/.demo
	@for name in $(EXPERIMENTS); do echo; echo "== demos/$$name.py"; $(VENV)/bin/python demos/$$name.py || exit 1; done

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"

# what takes long: more ways of the same, and more of them
test-slow: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadgroup -m slow

# 200 randomly drawn ways to train, each compared with brute force; another draw: make soak SEED=2
soak: $(VENV)/.dev
	$(VENV)/bin/python -m tests.soak --seed $(SEED)

# 250 errors, each in one function of ours in one of two processes, after which training has to end as without the monitor
failures: $(VENV)/.dev
	$(VENV)/bin/python -m tests.soak.failures --seed $(SEED)

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.demo
	$(VENV)/bin/python -m benchmarks.unprobed_step

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "found $$($(PYTHON) --version 2>&1 || echo no $(PYTHON)); supported is Python 3.10 or newer: install it, or name one with PYTHON="; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "found no working venv module; on Debian and Ubuntu it is a package of its own: apt install python3-venv"; exit 1; }

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing the package and what its demos need (the first time this takes minutes)"
	@$(PIP) -e '.[demos,plots,cli]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing the package and what its tests need (the first time this takes minutes)"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
