# `make demo` and `make test` do everything on a machine with Python >= 3.10 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

export OMP_NUM_THREADS = 1
# Hundreds of processes start in the tests; none of them should compile the library anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-slow docs coverage check chaos format evidence evidence-full readme clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

# More at a time than cores: a file's tests stay together, and those that wait for processes overlap with those that compute.
test: setup
	$(BIN)/pytest -n 3 --dist loadfile

# Minutes each, and many fresh examples for all that Hypothesis draws; hours.
test-slow: setup
	$(BIN)/pytest -m "slow or hypothesis" --hypothesis-profile long --timeout 3600 -o faulthandler_timeout=0

# The documentation site, in build/docs: open index.html. Notebooks are executed; a warning is an error.
docs: setup $(VENV)/docs-ready
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

$(VENV)/docs-ready: pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

# Line and branch coverage of `make test`, with all processes that the tests start.
coverage: setup
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 3 --dist loadfile
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The headline: minutes, as root, on a machine that does nothing else. All of it: a day; go on with the same command.
evidence: setup
	benchmarks/evidence.sh headline report

evidence-full: setup
	benchmarks/evidence.sh untuned link text mnist conditions cifar10 report

# A storm of faults: ten minutes, with link cuts and a full disk as root. Needs MNIST in SWARMSTEP_DATA.
chaos: setup
	$(BIN)/swarmstep chaos mnist --workers 8 --minutes 5 --faults-per-hour 720 --seed 0 --json

readme: setup
	$(BIN)/python benchmarks/claims.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage*
