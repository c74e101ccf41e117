# `make demo` and `make test` do everything on a machine with Python >= 3.10 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

export OMP_NUM_THREADS = 1

.PHONY: setup demo test test-slow chaos check format evidence evidence-full readme clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: check
	$(BIN)/pytest

test-slow: setup
	$(BIN)/pytest -m slow --timeout 1800

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The headline: minutes, as root, on a machine that does nothing else. All of it: hours; go on with the same command.
evidence: setup
	benchmarks/evidence.sh headline report

evidence-full: setup
	benchmarks/evidence.sh link mnist conditions cifar10 report

# A storm of faults: ten minutes, with link cuts and a full disk as root. Needs MNIST in SWARMSTEP_DATA.
chaos: setup
	$(BIN)/swarmstep chaos mnist --workers 8 --minutes 5 --faults-per-hour 720 --seed 0 --json

readme: setup
	$(BIN)/python benchmarks/claims.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
