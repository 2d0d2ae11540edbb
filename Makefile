# Every target does its own set-up. `make demo PYTHON=python3.12` picks another
# Python; one environment serves it until PYTHON or setup.py changes.
PYTHON ?= python3
VENV ?= .venv
# What `make demo` erases: an object of the Shapes world.
DEMO ?= star
# More flags for pytest: make test PYTEST="-k workdir -x".
PYTEST ?=
# A file's tests share compiled programs: they stay in one process. The files go
# in the order of tests/conftest.py, the longest first.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ifeq ($(filter $(VERSION),3.11 3.12 3.13),)
  $(error $(PYTHON) is Python '$(VERSION)'; want 3.11, 3.12 or 3.13: make PYTHON=...)
endif
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
CORE := $(VENV)/.core-$(VERSION)
DOCS := $(VENV)/.docs-$(VERSION)
RELEASE := $(VENV)/.release-$(VERSION)
TEST := $(VENV)/.test-$(VERSION)

# Compiled programs are kept between runs.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1

# Tests start hundreds of processes; each would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo bench demo-picture notebooks test test-slow test-all lint style format docs release-check

# A CPU is one device to JAX, whatever its cores. Two devices draw rows at once.
demo: export JAX_NUM_CPU_DEVICES ?= 2
demo: $(CORE)
	$(PY) -m launch.audit --config=configs/erase_uce.py:tiny,name=$(DEMO) --protocol=shapes-$(DEMO) --kernels=fast --workdir=runs/demo/audit
	@echo "Open runs/demo/audit/report.html"

# Speed beside other packages, each side on one core. torch, the peer, comes with
# the tests on Python 3.11. TMPDIR needs 5 GB for a while.
bench: $(TEST)
	$(PY) benchmarks/side_by_side.py --out=runs/bench.json

test: lint
	$(PY) -m pytest -m "not slow" $(WORKERS) $(PYTEST)

test-slow: $(TEST)
	$(PY) -m pytest -m slow $(WORKERS) $(PYTEST)

# Not one after the other: a file's tests of both kinds share what they compile.
# Types are checked meanwhile, and a wrong one fails at the end.
test-all: style
	$(PY) -m pyright --pythonpath $(PY) & types=$$!; \
	$(PY) -m pytest $(WORKERS) $(PYTEST) && \
	{ wait $$types || { echo "pyright, above, found wrong types"; exit 1; }; }

lint: style
	$(PY) -m pyright --pythonpath $(PY)

style: $(TEST)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

format: $(TEST)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

# What README shows of the demo; needs Debian's chromium.
demo-picture: demo
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1100,1510 \
	  --screenshot=docs/demo.png file://$(CURDIR)/runs/demo/audit/report.html

# Runs the notebooks of colab/ from their scripts, and keeps what they show.
notebooks: $(TEST)
	$(PY) -m tests.support.notebooks

# The site, in site/: a broken link, a page that no menu has or a name without a
# docstring ends it.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict
	@echo "Open site/index.html"

# What a release uploads, in dist/, and whether an index would take it.
release-check: $(RELEASE)
	rm -rf build dist
	$(PY) -m build --outdir dist
	$(PY) -m twine check --strict dist/*

# A stamp is newer than setup.py when the environment holds what it asks for.
# The environment is made anew only for another version of Python.
$(CORE): setup.py
	@echo "Setting up $(VENV) with Python $(VERSION) (minutes, once)"
	$(PY) -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' 2>/dev/null \
	  || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) --editable .
	@touch $@

$(DOCS): $(CORE)
	$(PIP) --editable '.[docs]'
	@touch $@

$(RELEASE): $(CORE)
	$(PIP) build twine
	@touch $@

# torch first and alone, so that nothing else picks a larger build of it.
$(TEST): $(CORE)
	[ "$(VERSION)" != 3.11 ] || $(PIP) torch==2.13.0
	$(PIP) --editable '.[test]'
	@touch $@
