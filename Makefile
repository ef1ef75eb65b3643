# Everything is done in .venv, which any target makes when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is imported is compiled then, which of these packages is a fifth, by the process that workers
# are forked from; and kept, or every other would compile all that it imports again.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python .ci/install.py
STAMP := $(VENV)/.installed

# Two more than there are cores, since tests wait for servers they start; four at most.
CORES := $(shell nproc 2> /dev/null || echo 2)
WORKERS ?= $(shell echo $$(( $(CORES) < 3 ? $(CORES) + 2 : 4 )))

.PHONY: serve test lint types unit browser promtool soak bench drift vllm clean

serve: $(STAMP)
	$(BIN)/weightledger serve

# Side by side: types are checked while tests wait, and a browser is fetched while all else is. All
# three are run, whichever fails. Who checks leaves the processor to the tests: they begin with what
# one process imports while another compiles loops, and leave enough of it later.
test:
	@$(MAKE) --no-print-directory --jobs=3 --keep-going lint types unit

lint: $(STAMP)
	nice -n 19 $(BIN)/ruff format --check .
	nice -n 19 $(BIN)/ruff check .

types: $(STAMP)
	nice -n 19 $(BIN)/mypy

unit: $(STAMP) browser promtool
	$(BIN)/python -m tests.workers $(WORKERS) -m "not soak"

# Chromium and its driver, Debian's, for the tests of the dashboard.
browser:
	@command -v chromium > /dev/null && command -v chromedriver > /dev/null \
	  || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium chromium-driver; } \
	  || echo "NO BROWSER: the dashboard's tests in a browser are skipped; install chromium and chromium-driver"

# Prometheus's own checker of rules, for the tests of deploy/: out of Debian's package, installing none.
promtool: | $(BIN)/python browser
	@command -v promtool > /dev/null || test -x $(BIN)/promtool \
	  || { cd $$(mktemp -d) && apt-get -qq -o APT::Sandbox::User=root download prometheus \
	       && dpkg -x prometheus_*.deb . && install usr/bin/promtool $(CURDIR)/$(BIN)/; } \
	  || echo "NO PROMTOOL: the alert rules are loaded and held against /metrics, and not run"

# 50 kills instead of 5, and longer campaigns.
soak: $(STAMP)
	$(BIN)/pytest -m soak

# Prints tables and writes JSON to benchmarks/results; `python -m benchmarks.table` prints them again.
# The peers that are commands have an environment of their own (1 GB).
PEERS_VENV ?= .venv-peers
bench: $(STAMP) $(PEERS_VENV)/.installed browser
	$(BIN)/python -m benchmarks.storage --peers $(PEERS_VENV)
	$(BIN)/python -m benchmarks.codec_choice
	$(BIN)/python -m benchmarks.small_updates
	$(BIN)/python -m benchmarks.writers
	$(BIN)/python -m benchmarks.history_length
	$(BIN)/python -m benchmarks.model_size
	$(BIN)/python -m benchmarks.http_rate
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.audit
	$(BIN)/python -m benchmarks.debugging_diff --peers $(PEERS_VENV)
	$(BIN)/python -m benchmarks.bisecting
	$(BIN)/python -m benchmarks.parallel
	$(BIN)/python -m benchmarks.sharded
	$(BIN)/python -m benchmarks.fleet_size
	$(BIN)/python -m benchmarks.fleet
	$(BIN)/python -m benchmarks.fleet_prepare
	$(BIN)/python -m benchmarks.monitoring_simulation
	$(BIN)/python -m benchmarks.collection_cost
	$(BIN)/python -m benchmarks.dashboard

$(PEERS_VENV)/.installed: benchmarks/peers.txt
	test -x $(PEERS_VENV)/bin/python || $(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --disable-pip-version-check -r benchmarks/peers.txt
	touch $@

# Which learning rules help and which harm: a quarter of an hour.
drift: $(STAMP)
	$(BIN)/python -m benchmarks.rules_drift

# Against a real vLLM (its CPU build, in an environment of its own): 3.4 GB, a few minutes.
VLLM_VENV ?= .venv-vllm
vllm: $(STAMP) $(VLLM_VENV)/.installed
	$(VLLM_VENV)/bin/python -m benchmarks.vllm_trial
	$(BIN)/python -m benchmarks.vllm_live --venv $(VLLM_VENV)

$(VLLM_VENV)/.installed: benchmarks/vllm_environment.sh
	PYTHON=$(PYTHON) benchmarks/vllm_environment.sh $(VLLM_VENV)
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt .ci/install.py | $(BIN)/python
	$(INSTALL) torch -e '.[test,bench]'
	# Its own bound on typer is older than ours, which it works with.
	$(INSTALL) --no-deps openapi-python-client
	touch $@

clean:
	rm -rf $(VENV) $(PEERS_VENV) $(VLLM_VENV) build *.egg-info
