# Everything runs in .venv, which `make` sets up with nothing but Python (3.11 or later) on the machine.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: demo test check lint format types slow gpu lock clean

demo: $(STAMP)            ## the whole experiment on the bundled data
	$(BIN)/python train.py

test: $(STAMP)            ## the default tests
	$(BIN)/python -m pytest

check: lint types test    ## what a commit must pass

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

slow: $(STAMP)            ## the tests that take longer
	$(BIN)/python -m pytest -m slow

gpu: $(STAMP)             ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

# torch goes first and alone: whatever build of it the machine offers then satisfies the other packages.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install -q --no-compile -r requirements.lock
	$(BIN)/python -m pip install -q --no-compile --no-deps -e .
	touch $(STAMP)

lock: $(STAMP)            ## pin what is installed now
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > requirements.lock

clean:
	rm -rf .venv
