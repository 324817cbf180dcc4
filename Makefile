# Everything a developer runs. The first target that needs it makes .venv; nothing is installed outside of it.

PYTHON ?= python3
SHELL  := bash
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
NEWEST := .venv-newest
WHEEL  := build/wheel
JOBS   ?= 8

.DEFAULT_GOAL := help
.PHONY: help demo test thorough fast test-newest newest check lint format wheel-test docs bench clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "optlang needs Python 3.11 or newer. Name one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PY) -m pip --version > /dev/null 2>&1 || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing PyTorch and the other dependencies into $(VENV) (once; some minutes)"
	@$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[demo,dev,docs]' \
	  | grep --line-buffered -E '^(Collecting|Building|Installing|Successfully)' | cut -c 1-100; \
	  test $${PIPESTATUS[0]} -eq 0
	@touch $@

demo: $(STAMP)  ## Train a network with the AdamW of examples/adamw.opt, next to torch.optim.AdamW
	@$(PY) examples/01_digits.py

test: $(STAMP)  ## Run the tests that this machine can run
	@$(PY) -m pytest -q -n auto --maxprocesses $(JOBS) -m 'not thorough'

thorough: $(STAMP)  ## Run what `make test` leaves out: every rule on TorchInductor
	@$(PY) -m pytest -q -n auto --maxprocesses $(JOBS) -m thorough

newest: $(NEWEST)/.installed

$(NEWEST)/.installed: pyproject.toml constraints.txt
	@$(NEWEST)/bin/python -m pip --version > /dev/null 2>&1 || { echo "making $(NEWEST)"; $(PYTHON) -m venv $(NEWEST); }
	@grep -v '^torch==' constraints.txt > $(NEWEST)/constraints.txt
	@echo "installing the newest PyTorch and what the tests need into $(NEWEST) (remove it for a newer one)"
	@$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(NEWEST)/constraints.txt -e '.[demo,dev]'
	@touch $@

# One file of them, say: make test-newest TESTS=tests/backends/test_backend_inductor.py
test-newest: newest  ## Run the tests that need a compiler with the newest PyTorch, in an environment of its own
	@$(NEWEST)/bin/python -c 'import torch; print("torch", torch.__version__)'
	@$(NEWEST)/bin/python -m pytest -q -n auto --maxprocesses $(JOBS) -m 'compiler and not thorough' $(TESTS)

fast: $(STAMP)  ## Run the tests that need no C++ compiler (minutes)
	@$(PY) -m pytest -q -n auto --maxprocesses $(JOBS) -m 'not compiler and not cuda and not slow'

check: lint test wheel-test  ## Everything that CI runs: format, lint, types, tests, tests of the wheel

lint: $(STAMP)  ## Check format, style and types
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy

format: $(STAMP)  ## Format the code and fix what can be fixed
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

wheel-test: $(STAMP)  ## Build the wheel and try it from an environment and a folder outside of the checkout
	@rm -rf $(WHEEL) && mkdir -p $(WHEEL)
	@$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEEL) .
	@$(PY) tests/project/wheel.py $(WHEEL)/*.whl

docs: $(STAMP)  ## Build the documentation into docs/_build/html
	@$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(STAMP)  ## Time the library's AdamW against torch.optim.AdamW(fused=True)
	@$(VENV)/bin/optlang bench adamw --shapes all

clean:  ## Remove what was built (not the environments)
	@rm -rf build dist docs/_build docs/reference .pytest_cache .mypy_cache .ruff_cache .hypothesis
