# Every target sets up what it needs in .venv; run `make` for the list.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?= -q -n 2

.PHONY: help demo test lint fuzz api compatibility results checkpoints inputs rd context latents store recovery \
	folders determinism compare paper paper-mnist mnist-sweep training clean

help:
	@echo "make demo         compress the bundled activations and show rate and distortion"
	@echo "make test         run the tests"
	@echo "make lint         ruff and mypy"
	@echo "make fuzz         fuzz every target of tests/fuzz (MINUTES=10 each; an hour and a quarter)"
	@echo "make api          write docs/api.md again, the public names"
	@echo "make compatibility  run the readers of all versions on the golden files: docs/compatibility.md"
	@echo "make results      measure again what docs/results.md reports (DATA=folder)"
	@echo "make checkpoints  write the tables of docs/checkpoints.md again (REFERENCE=folder, or SAECODEC_FIXTURES)"
	@echo "make inputs       measure the reading speeds of docs/inputs.md again"
	@echo "make rd           measure docs/rd.json and docs/rd.svg again, peers included (DATA=folder; an hour)"
	@echo "make context      measure docs/context.json again, which results.md shows (DATA=folder; an hour)"
	@echo "make latents      measure docs/latents.json again: what a delphi cache costs (DATA=folder; a minute)"
	@echo "make store        measure docs/store.json again: access, processes, memory (DATA=folder; 20 minutes)"
	@echo "make recovery     kill 50 encodes and recover each: docs/recovery.json (DATA=folder; 5 minutes)"
	@echo "make folders      measure docs/folders.json again: encode-dir on processes and on Ray (DATA=folder; 3 minutes)"
	@echo "make determinism  run docs/determinism.json again: other Pythons, numpy, torch (DATA=folder; 20 GB, half an hour)"
	@echo "make compare      compare all SAEs of the shared data again: docs/compare.json, pages in build/ (DATA=folder; 2 minutes)"
	@echo "make paper        measure (b) to (d) of docs/paper.md again (DATA=folder; an hour), not (a)"
	@echo "make paper-mnist  measure (a), docs/paper_mnist.md again (DATA=folder, MNIST_SAES=folder; an hour)"
	@echo "make mnist-sweep  run the sweep over MNIST of docs/paper.md again: docs/mnist_sweep.json (DATA=folder; 15 minutes)"
	@echo "make training     measure docs/training.json again, which docs/training.md shows (DATA=folder)"
	@echo "make clean        remove .venv, build outputs and caches"

# torch goes first and alone: constraints.txt says why.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/saecodec demo

# One torch thread per worker: two workers on two cores would otherwise fight over them.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

# mypy follows files, not package-dir, so it gets the package laid out as it is installed, with links to the sources.
TYPED := build/typed/saecodec
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TYPED) && mkdir -p $(TYPED)
	cd $(TYPED) && ln -s ../../../saecodec/* ../../../formats ../../../cli .
	MYPYPATH=build/typed $(BIN)/mypy

MINUTES ?= 10
fuzz: $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,fuzz]'
	$(BIN)/python tests/fuzz/run.py --minutes $(MINUTES)

api: $(STAMP)
	$(BIN)/python docs/make_api.py

compatibility: $(STAMP)
	$(BIN)/python docs/make_compatibility.py

DATA ?= ../shared/data
results: $(STAMP)
	$(BIN)/python docs/make_results.py $(DATA)

checkpoints: $(STAMP)
	$(BIN)/python docs/make_checkpoints.py $(REFERENCE)

inputs: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python docs/make_inputs.py

rd: $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,bench]'
	rm -f docs/rd.json
	$(BIN)/python docs/make_rd.py $(DATA)

context: $(STAMP)
	$(BIN)/python docs/make_context.py $(DATA)

latents: $(STAMP)
	$(BIN)/python docs/make_latents.py $(DATA)

store: $(STAMP)
	$(BIN)/python docs/make_store.py $(DATA)

folders: $(STAMP)
	$(BIN)/python docs/make_folders.py $(DATA)

# PYTHONS: interpreters that are not on PATH, such as --python '~/.pyenv/versions/*/bin/python'.
determinism: $(STAMP)
	$(BIN)/python docs/make_determinism.py $(DATA) $(PYTHONS)

paper: $(STAMP)
	$(BIN)/python docs/make_paper.py $(DATA)

recovery: $(STAMP)
	$(BIN)/python docs/make_recovery.py $(DATA)

compare: $(STAMP)
	$(BIN)/python docs/make_compare.py $(DATA)

# Trains the SAEs that are not there yet.
MNIST_SAES ?= build/mnist_saes
paper-mnist: $(STAMP)
	$(BIN)/python docs/paper_mnist.py $(DATA) $(MNIST_SAES)

mnist-sweep: $(STAMP)
	$(BIN)/python docs/make_mnist_sweep.py $(DATA)

training: $(STAMP)
	$(BIN)/python docs/make_training.py $(DATA)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
