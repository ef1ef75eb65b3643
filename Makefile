# Everything is done in .venv, which any target makes when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS := --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.installed

.PHONY: serve test lint types unit soak bench drift vllm clean

serve: $(STAMP)
	$(BIN)/weightledger serve

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/pytest -m "not soak"

# 50 kills instead of 5, and longer campaigns.
soak: $(STAMP)
	$(BIN)/pytest -m soak

# Prints a table and writes JSON to benchmarks/results.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.workload
	$(BIN)/python -m benchmarks.http_rate
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.audit

# Which learning rules help and which harm: a quarter of an hour.
drift: $(STAMP)
	$(BIN)/python -m benchmarks.rules_drift

# Against a real vLLM (its CPU build, in an environment of its own): 3.4 GB, a few minutes.
VLLM_VENV ?= .venv-vllm
vllm: $(STAMP) $(VLLM_VENV)/.installed
	$(BIN)/python -m benchmarks.vllm_live --venv $(VLLM_VENV)

$(VLLM_VENV)/.installed: benchmarks/vllm_environment.sh
	PYTHON=$(PYTHON) benchmarks/vllm_environment.sh $(VLLM_VENV)
	touch $@

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) torch
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[demo,test,bench]'
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build *.egg-info
