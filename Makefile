# One command a verb. Each does all its set-up on a fresh machine, in .venv.
#   make demo    the main job on real text          make test [ARGS="-k swap"]
#   make lint    style, types, symbols, line count  make format   make bench    make studies
#   make mutations    breaks the code on purpose; the tests must notice
#   make emulate      the tests of the kernels over AVX-512, emulated
# With another Python, beside the first:  make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
CORE := CMakeLists.txt $(wildcard core/*)
CPP := $(wildcard core/*.h core/*.cpp tests/core/*.cpp)

.PHONY: setup demo test lint format bench studies mutations emulate clean

setup: $(VENV)/built

demo: setup
	@$(BIN)/gatewise demo $(ARGS)

test: setup
	@$(BIN)/python -m pytest $(ARGS)

lint: setup
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/clang-format --dry-run --Werror $(CPP)
	@$(BIN)/mypy
	@$(BIN)/python tools/lint_symbols.py
	@$(BIN)/python tools/count_lines.py

format: setup
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .
	@$(BIN)/clang-format -i $(CPP)

bench: setup
	@$(BIN)/python -m bench.run $(ARGS)

# The lesson is made from full results; all others, and a page of them, stay in build/.
LEARN = $(if $(filter --full,$(or $(ARGS),--full)),docs/learn,build/studies)
studies: setup
	@$(BIN)/gatewise study --all --out $(LEARN)/results $(or $(ARGS),--full)
	@$(BIN)/python -m gatewise.studies.lesson $(LEARN)/results $(LEARN)/strengths-and-price.md

mutations: setup
	@$(BIN)/python tools/mutations.py $(ARGS)

emulate: setup
	@$(BIN)/python tools/emulate.py avx512 $(ARGS)
	@$(BIN)/python tools/emulate.py avx512bf16 $(ARGS)

clean:
	rm -rf $(VENV) build

# The tools and what they need, at the pinned versions; pip first, for --group. The emulator asks for wheel.
$(VENV)/tools: constraints.txt pyproject.toml tools/machine.sh
	@tools/machine.sh $(PYTHON)
	@echo "setting up $(VENV) (once; a few minutes, most of it for torch)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt pip
	@$(PIP) install --constraint constraints.txt --group dev
	@$(PIP) install --constraint constraints.txt --no-deps --only-binary :all: bochscpu-python wheel 2>/dev/null || \
		echo "no emulator for this machine: the AVX-512 kernels are tested where it has AVX-512"
	@touch $@

# The package itself: Python is used in place, the core is built into build/ and rebuilt when it changes.
$(VENV)/built: $(VENV)/tools $(CORE)
	@tools/machine.sh $(PYTHON)
	@echo "building gatewise"
	@$(PIP) install --constraint constraints.txt --no-build-isolation --config-settings=cmake.define.GATEWISE_WIDE=ON --editable '.[all]'
	@$(PIP) install --constraint constraints.txt --no-deps aeon  # for a file in it; it is not imported
	@touch $@
