# `make demo` and `make test` need Python 3.11 or later and the package index, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := data/demo
# What is installed: dev is everything, with the tools of the tests; all is everything that runs.
EXTRAS := dev

.PHONY: setup demo test test-long gpu-check lint clean

setup: $(VENV)/installed

# A marker file, so that a second `make` does not ask the package index again.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "avspk needs Python 3.11 or later, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS)]'
	touch $@

# Corpus, preparation and training each continue where an interrupted `make demo` was.
demo: setup
	$(BIN)/python tools/make_demo_corpus.py --out $(DEMO)/corpus
	$(BIN)/python tools/prepare_voxceleb.py --raw $(DEMO)/corpus/voxceleb2 --out $(DEMO)/vox2
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no tools/train_av.py

# In as many processes as there are cores; `python -m pytest -q` runs the same tests in one. The tests start some hundred
# processes, and each would compile the package again if Python were told not to keep what it compiles.
test test-long: export PYTHONDONTWRITEBYTECODE =
test: setup
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal

test-long: setup
	$(BIN)/python -m pytest -q -m long

# On a GPU, in at most eight minutes; ARGS=--rehearse without one.
gpu-check: setup
	$(BIN)/python eval/gpu_check.py $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info
