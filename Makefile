# Set-up goes into .venv; every target makes sure of it first.
VENV    ?= .venv
PYTHON  ?= python3
BIN     := $(VENV)/bin
export INPUT
READY   := $(VENV)/.ready
COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
           --no-header --no-annotate --no-emit-index-url --no-emit-find-links

.DEFAULT_GOAL := help
.PHONY: help demo test check format lock models clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile

$(READY): locks/dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r locks/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## run the main job on embedded servers (INPUT=ct.nii.gz for a file of yours)
	@$(BIN)/inference-service demo $${INPUT:+--input "$$INPUT"}

test: $(READY) ## run all tests on embedded servers
	$(BIN)/pytest

check: $(READY) ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory test

format: $(READY) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(READY) ## bring the hashed locks up to date with pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(COMPILE) --extra cpu --extra embedded --extra dev --output-file locks/dev.txt
	$(COMPILE) --extra cpu --output-file locks/cpu.txt
	$(COMPILE) --extra gpu --output-file locks/gpu.txt
	$(COMPILE) --extra openvino --output-file locks/openvino.txt

clean: ## remove the virtual environment and what runs have left
	rm -rf $(VENV) demo-output .mypy_cache .pytest_cache .ruff_cache .hypothesis
