# Two commands do everything on a fresh machine: `make train` and `make test`. Both make .venv first when it is missing.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PYTEST := $(BIN)/python -m pytest -n 2

.PHONY: install train test test-learn lint docs bench-peers bench-gpu clean

train: $(STAMP)
	$(BIN)/python -m madiff.train env=smac-like agents=3 resume=auto $(ARGS)

test: $(STAMP)
	$(PYTEST) $(ARGS)

test-learn: $(STAMP)
	$(PYTEST) -m learn --dist worksteal --durations=10 $(ARGS)

# pyright fetches itself when it first runs: without a network there are no types to check with.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	@if $(BIN)/pyright --version >/dev/null 2>&1; then $(BIN)/pyright --pythonpath $(BIN)/python; \
	else echo "types were not checked: pyright could not be fetched"; fi

# The page that is made of docstrings.
docs: $(STAMP)
	$(BIN)/python docs/equations.py

install: $(STAMP)

# Safety-Gymnasium declares pins of 2023 that no current stack meets; its code runs on it, so its pins are left out.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make install PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[data,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps safety-gymnasium==1.0.0
	@touch $(STAMP)

# The peers' pins clash with ours and with each other: one venv each.
bench-peers: $(STAMP)
	$(BIN)/python -m benchmarks.peers

# Needs a GPU: what it makes of training, planning and simulation, into gpu.json.
bench-gpu: $(STAMP)
	$(BIN)/python -m benchmarks.gpu $(ARGS)

clean:
	rm -rf .venv .venv-* build dist *.egg-info
