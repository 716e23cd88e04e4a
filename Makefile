# PEFT Atlas. `make demo` and `make test` do all the set-up on a fresh machine with Python 3.10 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test install lint bench docs-check slow clean

help:            ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[all,dev]"
	@touch $(STAMP)

install: $(STAMP)  ## make .venv and install everything

FIELDS := text vision_medical protein speech

demo: $(STAMP)   ## adapt the small model of each field, LoRA beside its anchors (minutes); the report's path comes last
	@for field in $(FIELDS); do \
	  $(BIN)/python -m domains.$$field.train -m +experiment=demo hydra.sweep.dir=outputs/demo/$$field || exit $$?; \
	done
	@$(BIN)/atlas report outputs/demo

test: $(STAMP)   ## the tests (about 16 minutes on 2 cores)
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: $(STAMP)   ## longer proofs: more kills, more seeds
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

lint: $(STAMP)   ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(STAMP)  ## speed and saved bytes beside HF peft, as ratios (about an hour)
	$(BIN)/python -m benchmarks.methods --write docs/performance.md

docs-check: $(STAMP)  ## run every command of the documentation
	$(BIN)/python -m pytest -m docs

clean:           ## remove what the project made here
	rm -rf $(VENV) outputs multirun .pytest_cache .ruff_cache dist build
