# `make demo` and `make test` do everything on a machine with Python >= 3.10 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

export OMP_NUM_THREADS = 1
# Hundreds of processes start in the tests; none of them should compile the library anew.
unexport PYTHONDONTWRITEBYTECODE

INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt --editable

.PHONY: setup demo test test-slow docs coverage check chaos format package gpu evidence evidence-full readme clean

# What is installed: what training needs; beside it what the tests need, or the checks.
setup: $(VENV)/ready-test $(VENV)/ready-lint

$(VENV)/ready-train: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $@

$(VENV)/ready-%: $(VENV)/ready-train
	$(INSTALL) ".[$*]"
	touch $@

demo: $(VENV)/ready-train
	$(BIN)/python examples/demo.py

# More at a time than cores: a file's tests stay together, and those that wait for processes overlap with those that compute.
test: $(VENV)/ready-test
	$(BIN)/pytest -n 3 --dist loadfile

# Minutes each, and many fresh examples for all that Hypothesis draws; hours.
test-slow: $(VENV)/ready-test
	$(BIN)/pytest -m "slow or hypothesis" --hypothesis-profile long --timeout 3600 -o faulthandler_timeout=0

# The documentation site, in build/docs: open index.html. Notebooks are executed; a warning is an error.
docs: $(VENV)/ready-docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

# Line and branch coverage of `make test`, with all processes that the tests start.
coverage: $(VENV)/ready-test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 3 --dist loadfile
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: $(VENV)/ready-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

format: $(VENV)/ready-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The wheel and the sdist in dist/, tried in a fresh environment as an ordinary user: minutes.
package: $(VENV)/ready-test
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	SWARMSTEP_DIST=dist $(BIN)/pytest -m slow -o faulthandler_timeout=0 tests/system/test_package.py

# What only a GPU can show: 15 minutes; where there is none, it says so.
gpu: $(VENV)/ready-train
	benchmarks/gpu.sh

# The headline: minutes, as root, on a machine that does nothing else. All of it: a day; go on with the same command.
evidence: $(VENV)/ready-test
	benchmarks/evidence.sh headline report

evidence-full: $(VENV)/ready-test
	benchmarks/evidence.sh untuned link text mnist conditions cifar10 report

# A storm of faults: ten minutes, with link cuts and a full disk as root. Needs MNIST in SWARMSTEP_DATA.
chaos: $(VENV)/ready-train
	$(BIN)/swarmstep chaos mnist --workers 8 --minutes 5 --faults-per-hour 720 --seed 0 --json

readme: $(VENV)/ready-test
	$(BIN)/python benchmarks/claims.py

clean:
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage*
