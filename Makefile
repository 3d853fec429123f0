# Everything runs from .venv, which these targets create and fill themselves; nothing has to be activated.
#   make demo   compress a small model end to end        make lint    style, types, C++ format
#   make test   the test suite                           make bench   every op against its limit and stock MLX
#   make bench-check      a short run of that against the committed ratios      make bench-baseline   renew them
#   make bench-compress   wall time of `compress` against `cp` of the source
#   make test-native   the C++ alone: under sanitizers, and for arm64 under an emulator
#   make test-peers   the engine against torch, transformers, mlx-lm and mlx-vlm, in .venv-peers (2 GB)
# Needs Python >= 3.10 with its headers and a C++20 compiler. Another Python: `make test PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
EXTRAS := test lint bench
BIN := $(VENV)/bin
ABOUT := $(VENV)/.location
DEPENDENCIES := $(VENV)/.dependencies
INSTALLED := $(VENV)/.installed
NATIVE := $(shell find CMakeLists.txt csrc 2>/dev/null)
CPP := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.metal' 2>/dev/null)

PYTEST_ARGS ?=
SHAPE ?= gemma-3-4b-it-qat-4bit
BENCH_MODEL ?= build/bench/$(SHAPE)
BENCH_MOBILE ?= build/bench/mobile
BENCH_OUT ?= build/bench/run
BENCH_ARGS ?=
BENCH_ENV ?=
COMPRESS_ARGS ?= --runs 5 --naive
TOKENIZER ?=

# The caller's packages must neither help nor harm.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_USER PIP_TARGET PIP_PREFIX
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-native test-peers peers lint bench bench-check bench-baseline bench-compress clean FORCE
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

venv: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/gemma-surgery demo

# What compiles csrc/cpu several times over takes longer than all other tests together: `make test-native`.
test: $(INSTALLED)
	$(BIN)/python -m pytest -m 'not native_build' $(PYTEST_ARGS)

# -rs: what could not run here, and why, is part of the result.
test-native: $(INSTALLED)
	$(BIN)/python -m pytest tests/native -m native_build -rs --durations=0 $(PYTEST_ARGS)

# The same rules make the second environment: command-line variables reach the whole sub-make.
test-peers:
	+@$(MAKE) --no-print-directory peers VENV=.venv-peers EXTRAS='test peers' BUILD_DIR='build/peers/{wheel_tag}'

peers: $(INSTALLED)
	$(BIN)/python -m pytest tests/peers $(PYTEST_ARGS)

lint: $(DEPENDENCIES)
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy
	$(if $(CPP),$(BIN)/clang-format --dry-run -Werror $(CPP))

# The table that pytest-benchmark prints has absolute times; limits and ratios are in that of bench/table.py.
BENCH := $(BENCH_ENV) $(BIN)/python -m pytest bench --benchmark-columns=median,iqr,rounds --benchmark-sort=name

bench: $(INSTALLED) $(BENCH_MODEL)/config.json $(if $(TOKENIZER),$(BENCH_MOBILE)/config.json)
	@mkdir -p $(BENCH_OUT)/plots
	$(BENCH) --original $(BENCH_MODEL) $(if $(TOKENIZER),--mobile $(BENCH_MOBILE)) \
	  --benchmark-json=$(BENCH_OUT)/results.json --benchmark-histogram=$(BENCH_OUT)/plots/bench $(BENCH_ARGS)
	$(BIN)/python bench/table.py $(BENCH_OUT)/results.json > $(BENCH_OUT)/results.md
	@cat $(BENCH_OUT)/results.md

# A machine that is disturbed once gets a second chance: the better ratio of both runs counts.
bench-check: $(INSTALLED)
	@mkdir -p $(BENCH_OUT)
	$(BENCH) --quick --benchmark-json=$(BENCH_OUT)/check-1.json $(BENCH_ARGS)
	$(BIN)/python bench/check.py $(BENCH_OUT)/check-1.json || { \
	  $(BENCH) --quick --benchmark-json=$(BENCH_OUT)/check-2.json $(BENCH_ARGS) && \
	  $(BIN)/python bench/check.py $(BENCH_OUT)/check-1.json $(BENCH_OUT)/check-2.json; }

bench-baseline: $(INSTALLED)
	@mkdir -p $(BENCH_OUT)
	for run in 1 2 3; do $(BENCH) --quick --benchmark-json=$(BENCH_OUT)/baseline-$$run.json $(BENCH_ARGS) || exit 1; done
	$(BIN)/python bench/check.py $(BENCH_OUT)/baseline-[123].json --write

bench-compress: $(INSTALLED) $(BENCH_MODEL)/config.json
	$(BIN)/python bench/compress_ratio.py $(BENCH_MODEL) $(COMPRESS_ARGS)

$(BENCH_MODEL)/config.json: | $(INSTALLED)
	@mkdir -p $(dir $(BENCH_MODEL))
	$(BIN)/gemma-surgery synth $(SHAPE) -o $(BENCH_MODEL) $(if $(TOKENIZER),--tokenizer $(TOKENIZER))

$(BENCH_MOBILE)/config.json: | $(BENCH_MODEL)/config.json
	$(BIN)/gemma-surgery compress $(BENCH_MODEL) -o $(BENCH_MOBILE) --recipe mobile

# An environment is kept as long as it works and stands where it was made: its scripts hold absolute paths.
ifneq ($(shell $(BIN)/python -c '' 2>/dev/null && cat $(ABOUT) 2>/dev/null),$(CURDIR))
$(ABOUT): FORCE
endif
$(ABOUT):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "need Python 3.10 or newer, got $$($(PYTHON) --version 2>&1) for \`PYTHON=$(PYTHON)\`" >&2; \
	  echo "hint: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@if test -e $(ABOUT) || ! $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	  echo "creating $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv --clear $(VENV) || { \
	    echo "hint: on Debian and Ubuntu, \`apt-get install python3-venv python3-dev\`" >&2; exit 1; }; \
	fi
	@printf '%s\n' "$(CURDIR)" > $@

# The build is not isolated: the extension is compiled against the very MLX that it will run with.
$(DEPENDENCIES): pyproject.toml tools/requirements.py $(ABOUT)
	$(BIN)/python -m pip install --quiet 'tomli>=2; python_version < "3.11"'
	$(BIN)/python tools/requirements.py $(EXTRAS) > $(VENV)/requirements.txt
	@# torch comes first and alone, so that the build chosen for it is the one that stays.
	for pin in $$(sed -n '/^torch==/p' $(VENV)/requirements.txt); do $(BIN)/python -m pip install --quiet $$pin; done
	$(BIN)/python -m pip install --quiet -r $(VENV)/requirements.txt
	@touch $@

$(INSTALLED): $(DEPENDENCIES) $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation \
	  $(if $(BUILD_DIR),--config-settings=build-dir='$(BUILD_DIR)') --editable .
	@touch $@

clean:
	rm -rf build dist .venv .venv-peers .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks *.egg-info
	find gemma_surgery tests bench tools -name __pycache__ -type d -prune -exec rm -rf {} +
