# Each target first brings the virtual environment .venv up to date.
# The build of ONNX Runtime: cpu, or openvino in an environment of its own. They exclude one another.
ENGINE  ?= cpu
VENV    ?= .venv$(if $(filter-out cpu,$(ENGINE)),-$(ENGINE))
PYTHON  ?= python3
BIN     := $(VENV)/bin
export INPUT
# Programs of the environment come after those of the machine.
export PATH := $(PATH):$(CURDIR)/$(BIN)
READY   := $(VENV)/.ready
# A separate environment for the peers' packages, which take gigabytes.
BENCH   := .venv-bench
TRAIN   := .venv-train
FUZZ    := .venv-fuzz
IMPORT  := .venv-import
# The build for CPUs, where pip finds it: its wheels differ by machine, so the lock leaves it out.
TORCH   := torch==2.13.0
# npm fetches the libraries of the page; it comes from a package where the machine has none.
NODE    := $(if $(shell command -v npm),,-r locks/node.txt)
PAGE    := inference_service/gateway/page
WORK    ?= training/ct_chest/work
# glibc keeps freed memory for the next training step instead of returning it to the system: a step takes a fifth less time.
KEEPING := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
           --no-header --no-annotate --no-emit-index-url --no-emit-find-links
# An optional check of jsonschema, which compiles a grammar for seconds in each process that imports jsonschema or MONAI.
OMITTED := --no-emit-package rfc3987-syntax --no-emit-package lark

.DEFAULT_GOAL := help
.PHONY: help demo view test test-all check lint prose docs format lock soak model fuzz bench train traintest importtest references clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile

$(READY): locks/dev-$(ENGINE).txt pyproject.toml $(PAGE)/package-lock.json
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r locks/dev-$(ENGINE).txt $(NODE)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## run the main job on embedded servers (INPUT=ct.nii.gz for a file of yours)
	@$(BIN)/inference-service demo $${INPUT:+--input "$$INPUT"}

view: $(READY) ## show the results of the demo in the page, on servers with its data
	@test -d demo-output/stack || { echo 'run make demo first'; exit 1; }
	@$(BIN)/inference-service stack --data demo-output/stack

# The end-to-end tests mostly wait for a process to start or a lease to expire, so the longest file of them sets the time.
PYTEST  := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
TRAINPYTEST := $(TRAIN)/bin/pytest --numprocesses 2 --dist loadfile --timeout 600
IMPORTPYTEST := $(IMPORT)/bin/pytest --numprocesses 2 --timeout 600

test: $(READY) ## run the tests on embedded servers (ENGINE=openvino TESTS=tests/integration/test_openvino.py)
	$(PYTEST) -m "not slow" $(TESTS)

test-all: test traintest importtest ## run the long tests too: whole demos, long outages, the training code and the accuracy of the models
	$(PYTEST) -m slow
	$(TRAINPYTEST) -m slow training
	$(IMPORTPYTEST) -m slow tests/importers

check: lint prose docs test ## check everything: lint, prose, docs, tests

lint: $(READY) $(PAGE)/node_modules/.ready ## check format, style, import layers and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	cd $(PAGE) && node_modules/.bin/biome check . && node_modules/.bin/tsc

PROSE   := README.md CONTRIBUTING.md SECURITY.md CHANGELOG.md benchmarks/README.md $(wildcard .github/*.md .github/*/*.yml) \
           $(wildcard docs/*.md docs/*/*.md models/*/*/README.md training/*/README.md tests/*/README.md)
CODE    := .ci inference_service tests benchmarks models training deploy docker Makefile pyproject.toml mkdocs.yml \
           $(wildcard docker-compose*.yml)
WORDING := $(BIN)/codespell --ignore-regex '`[^`]*`' --dictionary docs/style/vocabulary.txt

prose: $(READY) ## check spelling, vocabulary and sentences of the docs
	@$(BIN)/codespell $(PROSE) $(CODE)
	@$(WORDING) $(PROSE)
	@$(WORDING) --ignore-words-list excused $(CODE) # an old column has that name
	@$(BIN)/python docs/style/prose.py $(PROSE)

# Without --quiet: it hides warnings from --strict.
docs: $(READY) ## build the docs site into site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(READY) $(PAGE)/node_modules/.ready ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	cd $(PAGE) && node_modules/.bin/biome check --write .

$(PAGE)/node_modules/.ready: $(PAGE)/package-lock.json $(READY)
	npm --prefix $(PAGE) ci --ignore-scripts --no-audit --no-fund
	@touch $@

lock: $(READY) ## bring the hashed locks up to date with pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(COMPILE) pyproject.toml --extra cpu --extra embedded --extra dev --extra tracing --extra gateway $(OMITTED) --output-file locks/dev-cpu.txt
	$(COMPILE) pyproject.toml --extra openvino --extra embedded --extra dev --extra tracing --extra gateway $(OMITTED) --output-file locks/dev-openvino.txt
	$(COMPILE) pyproject.toml --extra cpu --extra tracing --extra gateway --output-file locks/cpu.txt
	echo 'onnxruntime-gpu<1.27' | $(COMPILE) pyproject.toml - --extra gpu --extra tracing --output-file locks/gpu-cuda12.txt
	echo 'onnxruntime-gpu>=1.27' | $(COMPILE) pyproject.toml - --extra gpu --extra tracing --output-file locks/gpu-cuda13.txt
	$(COMPILE) pyproject.toml --extra openvino --extra tracing --extra gateway --output-file locks/openvino.txt
	echo '$(TORCH)' | $(COMPILE) --constraints locks/dev-cpu.txt $(OMITTED) --no-emit-package torch pyproject.toml - \
	  --extra cpu --extra embedded --extra dev --extra tracing --extra gateway --extra import --output-file locks/import.txt
	$(COMPILE) --group flower --output-file locks/flower.txt
	grep -o '"hatchling[^"]*"' pyproject.toml | head -1 | tr -d '"' | $(COMPILE) - --group inventory --output-file locks/build.txt
	$(COMPILE) --group node --output-file locks/node.txt

soak: $(READY) ## kill parts of the service at random for 15 minutes and count the jobs that are lost or have a wrong outcome (ARGS="--minutes 2 --jobs 100")
	@$(BIN)/python tests/soak.py $(ARGS)

model: $(READY) ## explore every state of the model of the job protocol, and show that each broken rule is found (ARGS="--only prefix --ways")
	@PYTHONPATH=tests $(BIN)/python -m protocol_model $(ARGS)

fuzz: $(FUZZ)/.ready ## fuzz everything that strangers send, two minutes a target (ARGS="--seconds 60 --only nifti")
	@PYTHONPATH=tests $(FUZZ)/bin/python -m fuzz $(ARGS)

bench: $(BENCH)/.ready ## measure the engine against MONAI, PyTorch, ONNX Runtime and nnU-Net (ARGS="--only job")
	@$(BENCH)/bin/python -m benchmarks $(ARGS)

$(BENCH)/.ready: pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	WITHOUT_PAGE=1 $(BENCH)/bin/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

# Measure the result with `python -m training.ct_chest.evaluate --model` before it replaces the model in models/.
train: $(TRAIN)/.ready ## retrain ct-chest on synthetic CT, into WORK/ct-chest/1 (WORK=folder ARGS="--seed 1" EXPORT="--mean-with old.onnx")
	@$(KEEPING) $(TRAIN)/bin/python -m training.ct_chest.train --work $(WORK) $(ARGS)
	@$(TRAIN)/bin/python -m training.ct_chest.export --weights $(WORK)/weights.pt --folder $(WORK)/ct-chest/1 $(EXPORT)

traintest: $(TRAIN)/.ready ## test how the models in models/ are made, without the slow tests (TESTS=training/ct_tissue)
	$(TRAINPYTEST) -m "not slow" $(or $(TESTS),training)

importtest: $(IMPORT)/wheels/.ready ## test the import of models, without the slow tests (TESTS=tests/importers/test_sources.py)
	$(IMPORTPYTEST) -m "not slow" $(or $(TESTS),tests/importers)

# Networks to import, in a wheel whose code is not installed.
$(IMPORT)/wheels/.ready: locks/deepbet.txt $(IMPORT)/.ready
	$(IMPORT)/bin/pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest $(@D) -r locks/deepbet.txt
	@touch $@

references: $(IMPORT)/.ready ## train small networks with nnU-Net and keep its predictions in a cache (ARGS="--only HeadMR --again")
	@PYTHONPATH=tests $(IMPORT)/bin/python -m references $(ARGS)

# TotalSegmentator comes without most of what it requires: viewers and reports, which its predictions do not need.
$(IMPORT)/.ready: locks/import.txt locks/totalsegmentator.txt pyproject.toml
	$(PYTHON) -m venv $(IMPORT)
	$(IMPORT)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r locks/import.txt
	$(IMPORT)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r locks/totalsegmentator.txt
	$(IMPORT)/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	WITHOUT_PAGE=1 $(IMPORT)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# With the locked versions of all packages that the tests have too.
$(FUZZ)/.ready: locks/dev-cpu.txt pyproject.toml
	$(PYTHON) -m venv $(FUZZ)
	sed -nE 's/^([a-z0-9._-]+==[^\]*).*/\1/p' locks/dev-cpu.txt > $(FUZZ)/constraints.txt
	WITHOUT_PAGE=1 $(FUZZ)/bin/pip install --quiet --disable-pip-version-check --constraint $(FUZZ)/constraints.txt --editable '.[fuzz]'
	@touch $@

# All packages except PyTorch have their locked versions, so that the same seed gives the same scans. PyTorch's wheels differ
# by machine.
$(TRAIN)/.ready: locks/dev-cpu.txt pyproject.toml Makefile
	$(PYTHON) -m venv $(TRAIN)
	sed -nE 's/^([a-z0-9._-]+==[^\]*).*/\1/p' locks/dev-cpu.txt > $(TRAIN)/constraints.txt
	WITHOUT_PAGE=1 $(TRAIN)/bin/pip install --quiet --disable-pip-version-check --constraint $(TRAIN)/constraints.txt --editable '.[train,dev]'
	@touch $@

clean: ## remove the virtual environments, caches and files left by runs
	rm -rf .venv .venv-* $(PAGE)/node_modules $(PAGE)/web/vendor demo-output site .mypy_cache .pytest_cache .ruff_cache .hypothesis .fuzz
