# Two commands set up everything they need and run on a fresh machine:
#   make demo    the main job on the embedded trajectory; the report is written to demo-output/
#   make test    the tests but the slow ones: simulations, processes that are killed; make test SLOW=1/1 runs them all
# For those who change the code: make check, make docs, make site, make bench, make clean; make oldest-test; make
# backends-test installs other packages in environments of their own and tries them, all or those named:
# make backends-test BACKENDS="hqq or torchao".
# make study-cpu trains and measures a row of results/precision in about 20 minutes, on code that is part of Python;
# make study-gpu BOOKS=books.txt OTHERS=other-books.txt all of it: plain text, or .txt.bz2, with no book in both.
# make study-adapt trains a base of five million parameters and adapts it: results/adapt.
# make paper builds results/paper/paper.pdf from the tables of results/ (needs latexmk).

PYTHON ?= python3
BACKENDS ?=
SLOW ?= 0/1
BASE ?=
BOOKS ?=
OTHERS ?=
STUDY := study-output
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# What pip installs here is compiled by the first process that imports it, and not by each again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check lint types docs site wheel backends-test page-test paper paper-test notebook-test loggers-test cluster-test oldest-test newest-test gate bench study-cpu study-gpu study-adapt clean

demo: $(STAMP)
	$(BIN)/ptq-eval run examples/trajectory -o demo-output --group-size 16 --eval-windows 192 --calib-windows 48

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=30 --slow $(SLOW)

check: lint types test wheel

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/pyrefly check --min-severity error --python-interpreter-path $(BIN)/python

docs: $(STAMP)
	$(BIN)/python docs/generate_cli.py --check
	$(BIN)/python -m pytest -q tests/docs

site: $(STAMP)
	PYTHON=$(BIN)/python SLOW=$(SLOW) tests/site.sh

backends-test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m backends tests/backends/test_packages.py \
		tests/packing/test_loaded_by_gptqmodel.py -k "$(BACKENDS)"

wheel: $(STAMP)
	PYTHON=$(BIN)/python tests/wheel.sh

gate: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ci $(BASE)

oldest-test: $(STAMP)
	PYTHON=$(BIN)/python tests/oldest.sh

loggers-test: $(STAMP)
	PYTHON=$(BIN)/python tests/loggers.sh

newest-test:
	tests/newest.sh

cluster-test: $(STAMP)
	PYTHON=$(BIN)/python tests/cluster.sh

page-test: $(STAMP)
	PYTHON=$(BIN)/python tests/page.sh

paper-test: $(STAMP)
	PYTHON=$(BIN)/python tests/paper.sh

notebook-test: $(STAMP)
	PYTHON=$(BIN)/python tests/notebook.sh

bench: $(STAMP)
	$(BIN)/python -m benchmarks

study-cpu: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python results/precision/precision.py all $(STUDY) --stage 0
	$(BIN)/python results/precision/precision.py compare $(STUDY)

study-gpu: $(STAMP)
	$(BIN)/python results/precision/precision.py prepare "$(BOOKS)" "$(OTHERS)" $(STUDY)
	$(BIN)/python results/precision/precision.py all $(STUDY)

study-adapt: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-compile --constraint requirements/constraints.txt --editable ".[adapt,bitsandbytes]"
	$(BIN)/python results/adapt/study.py $(STUDY)/adapt

paper: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m results.paper.build

$(STAMP): pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint requirements/constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo-output study-output results/paper/generated build dist .pytest_cache .ruff_cache .hypothesis
