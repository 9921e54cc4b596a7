# The virtual environment; give another with `make test VENV=/somewhere/else`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

# Small networks run fastest on one thread, and a busy machine makes more of them very slow.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow lint docs peers clean

demo: $(VENV)/.installed  ## Train on digits, record the run, transfer it to three new starts.
	$(BIN)/slipstream demo

test: $(VENV)/.installed-dev  ## The fast tests, under ten minutes on two cores.
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-dev  ## The long tests; those of the peers extra need `make peers`.
	$(BIN)/python -m pytest -m "slow and not gpu"

# Beside a CPU build of torch, PyPI's torchvision (a CUDA build) would break Lightning and transformers.
peers: $(VENV)/.installed-dev  ## Networks and peers for slow tests and benchmarks.
	case "$$($(BIN)/python -c 'import torch; print(torch.__version__)')" in \
	*+cpu) $(BIN)/pip install --quiet --constraint constraints.txt torchvision==0.28.0+cpu \
	  --extra-index-url https://download.pytorch.org/whl/cpu ;; \
	esac
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[peers]"

docs: $(VENV)/.installed-dev  ## The documentation site, in docs/_build/html.
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs docs/_build/html

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV)
