VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast fidelity lint format dist clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-15s %s\n", $$1, $$2 }'

setup: $(STAMP) ## create the virtual environment and install the package in editable mode

# torchaudio's wheel contains an extension for CUDA, which a CPU build of torch cannot load.
# This project uses only torchaudio's Python functions, so the extension is removed then.
$(STAMP): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@set -e; \
	cuda=$$($(BIN)/python -c 'import torch; print(torch.version.cuda)'); \
	if [ "$$cuda" = None ]; then \
		rm -fv $(VENV)/lib/python*/site-packages/torchaudio/lib/*.so; \
	fi
	touch $@

demo: setup ## generate a page of samples offline, demo-output/index.html
	$(BIN)/audiox demo --output demo-output

# One thread per test process, so that the processes do not compete for cores.
test: lint ## lint, then run all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-fast: setup ## run the tests that are not slow
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

fidelity: setup ## print the deviation from the released code
	$(BIN)/pytest -q -s tests/pipelines/test_golden.py tests/pipelines/test_golden_family.py | grep "relative error"

lint: setup ## check the style of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## fix the style where that is possible
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: setup ## build a wheel and an sdist into dist, and check them
	rm -rf dist build
	$(BIN)/python -m pip install -q -c constraints.txt ".[dist]"
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

clean: ## remove everything built except the virtual environment
	rm -rf build dist demo-output .pytest_cache .ruff_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
