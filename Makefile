# For a machine with Python >= 3.10 and make; everything goes into .venv here.
# Another Python: make PYTHON=/path/to/python3 … ; more processes for the tests: make test JOBS=4 ;
# JupyterLab on a server: make lab LAB='--no-browser --port 8888'
PYTHON ?= python3
JOBS ?= 2
LAB ?=
EXPLORE ?=
VENV := .venv
BIN := $(VENV)/bin
ACTIVE := PATH="$(CURDIR)/$(BIN):$$PATH"
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev
SETUP := settings.ini setup.py pyproject.toml

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo explore lab test check test-notebooks test-slow test-python export readme docs clean
export PIP_NO_INPUT := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests run in several processes: one thread each, and no progress bars.
test test-notebooks test-slow test-python: export OMP_NUM_THREADS = 1
test test-notebooks test-slow test-python: export OACL_QUIET = 1

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-15s %s\n", $$1, $$2}'

demo: $(RUN) ## the whole procedure at toy size: train, find the objects, train again, compare
	@$(ACTIVE) $(BIN)/oacl demo --resume

explore: $(DEV) ## the explorer in JupyterLab; as a page for a projector: make explore EXPLORE=--voila
	@$(ACTIVE) $(BIN)/oacl explore $(EXPLORE)

lab: $(DEV) ## JupyterLab on the notebooks
	@$(ACTIVE) $(BIN)/jupyter lab --notebook-dir=nbs $(LAB)

test: $(DEV) ## everything that must hold before a commit
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory test-notebooks
	@$(MAKE) --no-print-directory test-slow
	@$(MAKE) --no-print-directory test-python

check: $(DEV) ## are notebooks, package and README in step? changes nothing
	$(BIN)/python tools/check.py

test-notebooks: $(DEV) ## the quick cells of every notebook
	@$(ACTIVE) $(BIN)/nbdev_test --n_workers $(JOBS) --timing

# Only the notebooks that have slow cells (or, where a GPU is there, GPU cells) run again.
test-slow: $(DEV) ## the slow cells, and the GPU cells where there is a GPU
	@flags=slow; workers=$(JOBS); \
	if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then flags='slow gpu'; workers=1; fi; \
	found=$$(grep -rlE --include='*.ipynb' --exclude-dir='.*' "\"# ?\| ?($${flags// /|})\b" nbs || true); \
	names=$$(for path in $$found; do basename "$$path" .ipynb; done | paste -sd'|' -); \
	if [ -z "$$names" ]; then echo "no cells with: $$flags"; exit 0; fi; \
	echo "nbdev_test --flags '$$flags' on $${names//|/, }"; \
	$(ACTIVE) $(BIN)/nbdev_test --file_re "^($$names)\.ipynb$$" --flags "$$flags" --n_workers $$workers --timing

test-python: $(DEV) ## what a notebook cell cannot hold: commands, processes, packaging
	@$(ACTIVE) $(BIN)/python -m pytest -q tests

export: $(DEV) ## clean the notebooks, write the package and README.md from them
	$(BIN)/python tools/check.py --write
	$(BIN)/python tools/readme.py

readme: $(DEV) ## README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

# nbdev_docs would write its own README.md were ours older than the index notebook.
docs: $(DEV) ## the notebooks as a web site in _docs (with Quarto where it is installed)
	@if command -v quarto >/dev/null; then touch README.md; $(ACTIVE) $(BIN)/nbdev_docs; else $(BIN)/python tools/docs.py; fi

clean: ## remove what was built; the environment in .venv stays
	rm -rf build dist _docs _proc *.egg-info .pytest_cache
	find nbs oacl tests tools -name __pycache__ -prune -exec rm -rf {} +

# ---- the environment

# The stamps say where .venv was made: moved, half made, or without its Python it is made again.
$(shell test -x $(BIN)/python && grep -qsxF '$(CURDIR)' $(RUN) || rm -f $(RUN) $(DEV))

$(RUN): $(SETUP)
	$(call install,.)
	@pwd -P > $@

$(DEV): $(SETUP)
	$(call install,.[dev])
	@$(BIN)/python -m pip install -q pydensecrf2 2>/dev/null || echo 'the dense CRF (the extra crf) could not be built here: its tests are skipped'
	@pwd -P | tee $(RUN) > $@

# A package whose installation was cut short has no INSTALLER file: pip forgets it here and installs it again.
define install
@command -v '$(PYTHON)' >/dev/null || \
  { echo 'oacl needs Python 3.10 or newer: $(PYTHON) was not found; name one with make PYTHON=/path/to/python3'; exit 1; }
@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
  { echo "oacl needs Python 3.10 or newer: $(PYTHON) is $$('$(PYTHON)' -V 2>&1); name one with make PYTHON=/path/to/python3"; exit 1; }
@if ! { $(BIN)/python -m pip --version && grep -F '$(CURDIR)/$(BIN)/' $(BIN)/pip; } >/dev/null 2>&1; then \
  '$(PYTHON)' -c 'import venv, ensurepip' 2>/dev/null || \
    { echo '$(PYTHON) cannot make virtual environments: install python3-venv (Debian, Ubuntu: apt install python3-venv)'; exit 1; }; \
  echo 'making $(VENV)'; '$(PYTHON)' -m venv --clear $(VENV); \
fi
@for info in $(VENV)/lib/python*/site-packages/*.dist-info; do \
  if [ -d "$$info" ] && [ ! -f "$$info/INSTALLER" ]; then rm -rf "$$info"; fi; done
@echo 'installing into $(VENV); the first time this takes some minutes'
@$(BIN)/python -m pip install -q 'pip>=21.3' 'setuptools>=70.1'
@set -o pipefail; $(BIN)/python -m pip install --no-build-isolation -e '$(1)' | awk '/Downloading|Building|Installing|Successfully/ {print; fflush()}'
endef
