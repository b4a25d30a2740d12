# FedBraid: every task of a developer. `make` alone lists them.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Not locked like the rest: its builds for CPU and GPU lie in different places.
TORCH := torch==2.13.0
CODE := backend worker dashboard migrations tests benchmarks examples
# Passed on, for instance: make test ARGS="-k alignment -x"
ARGS ?=

.PHONY: help install demo up test test-api test-faults check format screenshots lock clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | column -t -s "$$(printf '\t')"

install: $(STAMP) ## put everything into .venv (again only after a change of the dependencies)

demo: $(STAMP) ## the whole platform with five clients and three runs, in the browser
	@$(BIN)/fedbraid demo $(ARGS)

up: $(STAMP) ## the whole platform, empty
	@$(BIN)/fedbraid up $(ARGS)

test: $(STAMP) ## all tests
	@$(BIN)/python -m pytest $(ARGS)

test-api: $(STAMP) ## thousands of requests made from the OpenAPI document (ARGS="--api-cases 500")
	@$(BIN)/python -m pytest tests/backend/conformance --api-cases 150 $(ARGS)

test-faults: $(STAMP) ## at least 200 faults into a running platform (ARGS="--faults 60 --first-seed 1000")
	@$(BIN)/python -m tests.faults $(ARGS)

check: $(STAMP) ## lint, formatting, types, who may import whom
	@$(BIN)/ruff check $(wildcard $(CODE))
	@$(BIN)/ruff format --check $(wildcard $(CODE))
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## put the code into its standard form
	@$(BIN)/ruff check --fix $(wildcard $(CODE))
	@$(BIN)/ruff format $(wildcard $(CODE))

screenshots: $(STAMP) ## the pictures of the docs anew, from a real run (needs Chromium)
	@$(BIN)/python -m tests.browser.take_screenshots docs/images

lock: $(STAMP) ## choose the newest versions anew and write them to requirements.lock
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
	  --no-annotate --no-header --no-emit-package torch --quiet --output-file requirements.new
	@grep -vE '^(nvidia-|cuda-|triton)' requirements.new > requirements.lock
	@rm requirements.new

clean: ## remove the environment and everything that was built
	@rm -rf $(VENV) build dist *.egg-info htmlcov .coverage .coverage.*
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first python that is new enough and can make environments.
FIND_PYTHON = for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
  then echo "$$python"; exit 0; fi; done; \
  echo 'FedBraid needs Python 3.11 or newer with venv (Debian: apt install python3-venv);' \
       'name it: make install PYTHON=...' >&2; exit 1

$(STAMP): pyproject.toml requirements.lock
	@python="$$($(FIND_PYTHON))"; test -x $(BIN)/python || "$$python" -m venv $(VENV)
	@echo 'Installing into $(VENV) (some minutes the first time) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/python -c 'import torch' 2>/dev/null || { \
	  backend=cpu; if command -v nvidia-smi >/dev/null; then backend=auto; fi; \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=$$backend '$(TORCH)' 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check '$(TORCH)'; }
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c requirements.lock -e '.[dev]'
	@touch $@
