VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp

.DEFAULT_GOAL := help
.PHONY: help setup demo test fidelity lint format wheel clean

help: ## print this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-13s %s\n", $$1, $$2 }'

setup: $(STAMP) ## make the virtual environment and install the package into it, editable

# torchaudio's wheel carries an extension built for CUDA, which cannot load beside a CPU
# build of torch and would stop `import torchaudio`. torchaudio is made to run without the
# extension, and this project uses only torchaudio's pure-Python functions, so beside a CPU
# build of torch the extension is removed.
$(STAMP): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@set -e; \
	cuda=$$($(BIN)/python -c 'import torch; print(torch.version.cuda)'); \
	if [ "$$cuda" = None ]; then \
		rm -fv $(VENV)/lib/python*/site-packages/torchaudio/lib/*.so; \
	fi
	touch $@

demo: setup ## make a page of sounds with the small model of the package, demo-output/index.html
	$(BIN)/audiox demo --output demo-output

# One thread per test process: otherwise the processes fight for the same cores.
test: lint ## lint, then run all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

fidelity: setup ## print how far the numbers are from those of the released code
	$(BIN)/pytest -q -s tests/pipelines/test_golden.py tests/pipelines/test_golden_family.py | grep "relative error"

lint: setup ## check the code's style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## put the code into the style that lint checks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: setup ## build a wheel into dist
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove everything built, except for the virtual environment
	rm -rf build dist demo-output .pytest_cache .ruff_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
