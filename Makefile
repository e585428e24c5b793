# `make` lists the targets. Everything is installed into .venv; nothing outside this folder is
# written but pip's cache and compiled programs in ~/.cache/moejax.

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
export PROMPT ?= A list is
PYTEST_ARGS ?=
PYTEST_WORKERS ?= 2

# The first interpreter on PATH that is new enough; `make demo PYTHON=/path/to/python3.12` overrides the search.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
FIND_PYTHON = for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
  "$$p" -c "$(NEW_ENOUGH)" 2>/dev/null && { echo "$$p"; break; }; done
PYTHON ?= $(shell $(FIND_PYTHON))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test compile-check bench bench-docs figures docs lint format types check clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(firstword $(MAKEFILE_LIST)) | while read -r name text; do \
	  printf '  make %-13s %s\n' "$$name" "$$text"; done

# What JAX runs on: cpu, cuda (an NVIDIA driver from 525 on), cuda13 (from 580 on) or tpu.
DEVICE ?= cpu
EXTRA := $(patsubst cuda,cuda12,$(filter-out cpu,$(DEVICE)))

demo: $(VENV)/.installed$(EXTRA:%=-%) ## install, then decode a prompt with the bundled checkpoint (PROMPT="...", DEVICE=cuda)
	@$(BIN)/moejax decode demo --prompt "$$PROMPT"

test: $(VENV)/.installed-test ## install the test extra, then run the whole suite (PYTEST_ARGS="...")
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# In an environment of its own: JAX looks for a driver wherever its CUDA plugin is installed.
COMPILE_VENV := .venv-compile
compile-check: ## compile for GPUs and TPUs that are not here, compare with the committed counts (none is needed)
	@$(MAKE) --no-print-directory VENV=$(COMPILE_VENV) $(COMPILE_VENV)/.installed-compile $(COMPILE_VENV)/.installed-compile-tpu
	@$(COMPILE_VENV)/bin/python -m scripts.compile_for --check

# Interleaved rounds beside the other systems, both sizes; then what a step reads, and what strategies send. The commands
# of docs/benchmarks.md are in scripts/bench_suite.py, which makes a report of each one's --json and one page of them all.
BENCH := build/bench
bench: $(VENV)/.installed-peers ## time moejax beside transformers and llama.cpp; reports in build/bench
	@rm -rf $(BENCH) && mkdir -p $(BENCH)
	@$(BIN)/python -m scripts.bench_suite $(BENCH)

bench-docs: $(VENV)/.installed-peers ## make docs/benchmarks.md, its plots and the poster of what `make bench` measured
	@$(BIN)/python -m scripts.bench_page $(BENCH) --docs

figures: $(VENV)/.installed-plot ## draw every figure of docs/ again from the JSON beside it; times nothing
	@$(BIN)/python -m scripts.redraw_figures

docs: $(VENV)/.installed-docs ## build the site of docs/ in build/site; a link that leads nowhere is an error
	@$(BIN)/python -m scripts.docs_site build/site

lint: $(VENV)/.installed-dev ## check formatting and lint
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

format: $(VENV)/.installed-dev ## rewrite the files the way `make lint` wants them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

types: $(VENV)/.installed-dev $(VENV)/.installed-test ## check types
	@$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test ## lint, types and test

clean: ## remove caches and build outputs, keep .venv
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## remove .venv and .venv-compile too
	rm -rf $(VENV) $(COMPILE_VENV)

# A stamp is written only when its installation has finished, so an interrupted one is taken up again by the next make.
# pip is left verbose and reduced to the packages it is fetching: silent it looks dead for a minute. Its errors, on
# stderr, pass through. The reader of a pipe decides the pipe's status, hence the stamp inside and the test behind it.
$(VENV)/.installed: pyproject.toml
	$(call install,.)
$(VENV)/.installed-%: pyproject.toml
	$(call install,.[$*])

define install
@"$(PYTHON)" -c "$(NEW_ENOUGH)" 2>/dev/null || { \
  found=$$("$(or $(PYTHON),python3)" --version 2>/dev/null || echo none); \
  echo "moejax needs Python 3.11 or newer, found: $$found. Name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
@rm -f $@
@echo "Installing moejax$(1:.%=%) into $(VENV) with $$("$(PYTHON)" --version): a few minutes the first time"
@"$(PYTHON)" -m venv $(VENV)
@{ PYTHONUNBUFFERED=1 $(PIP_INSTALL) -e '$(1)' && touch $@; } | \
  while IFS= read -r line; do case "$$line" in \
    Collecting*) line=$${line#Collecting }; echo "  $${line%% *}";; \
    "Installing collected"*) echo "  unpacking";; \
  esac; done
@test -e $@
endef
