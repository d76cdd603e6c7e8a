# Every target does its own set-up: Python 3.10 or later, git and a package index are all it takes.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
REPRODUCE := HF_HUB_OFFLINE=1 $(BIN)/python code/reproduce.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quick reproduce demo summary documents notebooks check test lint parity break benchmark gpu-check clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

quick: .venv/.installed  ## Tables 3 and 2 at quick scale: train, decode, score, print the tables, draw the figure
	$(REPRODUCE) sweep table3 --scale quick --rows full lora-r4 --seeds 0
	$(REPRODUCE) table table3 --scale quick --rows full lora-r4
	$(REPRODUCE) figure table3 --scale quick
	$(REPRODUCE) sweep table2 --scale quick --rows sentiment-builtin/full sentiment-builtin/lora-r8 paraphrase-builtin/full paraphrase-builtin/lora-r8 --seeds 0
	$(REPRODUCE) table table2 --scale quick --rows sentiment-builtin/full sentiment-builtin/lora-r8 paraphrase-builtin/full paraphrase-builtin/lora-r8

reproduce: quick  ## another name of it

demo: .venv/.installed-demo  ## a web page on this machine: many adapters beside one model, in one batch
	HF_HUB_OFFLINE=1 $(BIN)/python code/demo.py

summary: .venv/.installed  ## tables, figures and the blocks of pages, made anew from the records
	$(BIN)/python code/make.py summary

notebooks: .venv/.installed  ## execute all notebooks anew at quick scale (some: python code/make.py notebooks 01 07)
	$(BIN)/python code/make.py notebooks $(UNCHANGED)

documents: .venv/.installed  ## the report and the poster as PDF, from the summary
	$(BIN)/python code/make.py documents

check: .venv/.installed  ## is all that is generated what the records and the sources give?
	$(BIN)/python code/make.py check
	$(BIN)/python code/make.py notebooks --check

test: lint  ## the linter, then all tests that need no GPU, no network and no patience, then `make check`
	$(BIN)/python -m pytest
	$(BIN)/python code/make.py check
	$(BIN)/python code/make.py notebooks --check

lint: .venv/.installed-tests  ## ruff: rules and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

parity: .venv/.installed-tests  ## beside packages that cannot be installed beside ours: AdapterHub, torchao
	$(BIN)/python -m pytest -m slow tests/test_adapters_parity.py tests/test_int8.py

break: .venv/.installed-tests  ## real runs killed, stopped, starved and fed rubbish: an hour or two, for results/robustness.json
	$(BIN)/python -m pytest -m slow tests/breaking --tally results/robustness.json

benchmark: .venv/.installed-tests  ## time and memory against PEFT and transformers, as ratios
	$(BIN)/python code/benchmark.py

gpu-check: .venv/.installed-tests  ## six minutes on a GPU: can it be trusted with the paper's runs, and how long will they take?
	HF_HUB_OFFLINE=1 TQDM_DISABLE=1 PYTHONUNBUFFERED=1 $(BIN)/python code/make.py gpu-check

clean:  ## remove .venv and what tools cached; results, checkpoints and data stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
	find code tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("expected Python 3.10 or later, found %d.%d; give another: make PYTHON=..." % v[:2])'
	$(PYTHON) -m venv .venv
	@echo "installing into .venv, which takes some minutes the first time"
	$(PIP) -r requirements.txt
	@touch $@

.venv/.installed-tests: .venv/.installed tests/requirements.txt
	$(PIP) -r tests/requirements.txt
	@touch $@

.venv/.installed-demo: .venv/.installed requirements-demo.txt
	$(PIP) -r requirements-demo.txt
	@touch $@
