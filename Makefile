# Builds its own .venv: `make quickstart` works in a clean clone with Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS ?= 2

# Else pyright asks the network for a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint format bench

help:  ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  With ARGS='...' for more arguments, PYTHON=python3.12 for another Python, WORKERS=8 for faster tests."

install: $(STAMP)  ## Build .venv (the others do it by themselves)

quickstart: $(STAMP)  ## See the idea work: reduce the embedded data by 75 %, train on it, compare (5 to 10 minutes, 2 cores)
	$(BIN)/python benchmarks/quickstart.py $(ARGS)

test: export WANDB_MODE := offline
test: export HF_HUB_OFFLINE := 1
test: export OMP_NUM_THREADS := 1
test: lint  ## Lint, then run the tests (ARGS='-k pairs' for some of them)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --max-worker-restart 0 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP)  ## Check style (ruff) and types (pyright)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(STAMP)  ## Let ruff put the style right
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(if $(NAME),$(STAMP))  ## List the benchmarks, or run one: make bench NAME=quickstart
ifdef NAME
	$(BIN)/python benchmarks/$(NAME).py $(ARGS)
else
	@for file in benchmarks/[a-z]*.py; do \
		printf '  make bench NAME=%-14s %s\n' "$$(basename $$file .py)" "$$(sed -n '1s/^"""//p' $$file | sed 's/"""$$//')"; \
	done
endif

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) here: install Python 3.11 or newer, or name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V); name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@echo 'Installing into .venv, once: several gigabytes, a few minutes'
	$(BIN)/python -m pip install --editable '.[dev,metrics,ray,video]' --constraint constraints.txt
	@touch $@
