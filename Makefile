# Every target makes the virtual environment first when it is missing or older than the files that define it.
VENV    ?= .venv
PYTHON  ?= python3
PY      := $(VENV)/bin/python
STAMP   := $(VENV)/.ready

EXP     ?= demo
ARGS    ?=
DATASET ?= acdc
PART    ?= val
CHECKPOINT ?= best

export WANDB_MODE ?= $(if $(WANDB_API_KEY),online,offline)
export NO_ALBUMENTATIONS_UPDATE := 1
export TRITON_CACHE_DIR ?= $(CURDIR)/.cache/triton

.DEFAULT_GOAL := help
.PHONY: help setup train eval predict data report dashboard bench test test-gpu lint types format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "  Start with: make train EXP=demo"

setup: $(STAMP) ## make the virtual environment (other targets do it by themselves)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"mambaseg needs Python 3.11 or newer; {sys.executable} is {v[0]}.{v[1]}. Set PYTHON=python3.11")'
	@echo "Setting up $(VENV): about a minute, and about 1.5 GB on a machine without a GPU build of torch ..."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@if $(PY) -c 'import torch, sys; sys.exit(torch.version.cuda is not None)'; then \
		$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints-cpu.txt triton; fi
	@touch $@

train: $(STAMP) ## train: EXP=demo|semi_acdc|..., RESUME=auto, ARGS="--set trainer.max_steps=100"
	@$(PY) -m mambaseg fit --config $(EXP) $(if $(RESUME),--resume $(RESUME)) $(ARGS)

eval: $(STAMP) ## score a run: RUN=folder, PART=val|test, CHECKPOINT=best|last
	@$(PY) -m mambaseg $(if $(filter test,$(PART)),test,validate) --run "$(or $(RUN),$(EXP))" --checkpoint $(CHECKPOINT) $(ARGS)

predict: $(STAMP) ## segment scans: RUN=folder INPUT=scan.nii.gz|folder
	@$(PY) -m mambaseg predict --run "$(or $(RUN),$(EXP))" $(if $(INPUT),--input "$(INPUT)") $(ARGS)

data: $(STAMP) ## import a dataset: DATASET=acdc SOURCE=folder
	@$(PY) -m mambaseg prepare $(DATASET) $(if $(SOURCE),--source "$(SOURCE)") $(ARGS)

report: $(STAMP) ## HTML report: RUN="folder [folder ...]"
	@$(PY) -m mambaseg report $(or $(RUN),$(EXP)) $(ARGS)

dashboard: $(STAMP) ## watch training: RUN="folder [folder ...]"
	@$(PY) -m mambaseg dashboard --run $(or $(RUN),$(EXP)) $(ARGS)

bench: $(STAMP) ## speed and memory of this machine, as CSV in benchmarks/; EXP=...: of its training step alone
	@$(PY) $(if $(filter file,$(origin EXP)),benchmarks/run.py,-m mambaseg bench step --config $(EXP)) $(ARGS)

test: $(STAMP) ## the test suite
	@$(PY) -m pytest $(ARGS)

test-gpu: $(STAMP) ## the tests that need a CUDA device
	@$(PY) -m pytest -m gpu -n 0 $(ARGS)

lint: $(STAMP) ## ruff: rules and format
	@$(VENV)/bin/ruff check && $(VENV)/bin/ruff format --check

types: $(STAMP) ## mypy --strict
	@$(VENV)/bin/mypy

format: $(STAMP) ## apply ruff's fixes and format
	@$(VENV)/bin/ruff check --fix && $(VENV)/bin/ruff format

clean: ## remove the virtual environment and caches (runs and data stay)
	@rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
