# lados. `make setup` once, `make demo` to see it work, `make test` before you hand anything in.
#
#   PYTHON=python3.12      which Python the environment is made from (3.11 or newer)
#   VENV=.venv             where it is
#   PORT=8888              where `make lab` serves
#   TORCH_INDEX=URL        where pip finds torch, such as the CPU-only builds; see docs/how-to/gpu-and-cluster.md

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
PORT ?= 8888
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.lados-ready
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-long test-deploy images test-fronts coverage lab bench outputs docs docs-serve readme clean

help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## make .venv and install lados into it; does nothing where that is done

HAS_TORCH = import sys; from importlib.metadata import version; sys.exit(tuple(map(int, version("torch").split(".")[:2])) < (2, 11))

# what runs for minutes tells every ten seconds how far it is
PULSE = pulse() { "$$@" & local pid=$$! start=$$SECONDS; trap "kill $$pid 2> /dev/null || true" EXIT; while sleep 10; kill -0 $$pid 2> /dev/null; do \
	echo "  $$((SECONDS - start)) s, $$(du -sh $(VENV) 2> /dev/null | cut -f1) there"; done; wait $$pid; };

# a torch that the base Python has (a GPU image, say) is seen from the environment, and kept if it is new enough
$(READY): setup.py settings.ini pyproject.toml constraints.txt tools/versions.py
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("lados needs Python 3.11 or newer: make setup PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $$($(PYTHON) -c '$(HAS_TORCH)' 2>/dev/null && echo --system-site-packages) $(VENV)
	$(BIN)/python tools/versions.py keep > $(VENV)/constraints.txt
	@test -z "$(TORCH_INDEX)" || $(BIN)/python -m pip install -q torch torchvision -c $(VENV)/constraints.txt --index-url "$(TORCH_INDEX)"
	@# editable_mode: a plain path, so that Python started in the folder around the checkout finds the package, not the checkout as an empty one
	@$(PULSE) echo "installing lados and what it needs into $(VENV): some 8 GB, five to ten minutes; while pip downloads, little is added there"; \
	pulse $(BIN)/python -m pip install -q -e '.[train,export,app,jobs,s3,geo,otel,streamlit,flet,lab,docs,dev]' --config-settings editable_mode=compat -c $(VENV)/constraints.txt
	@touch $@

demo: setup ## the whole job on a drawn sample: train, report, evaluate, classify three images
	$(BIN)/lados demo

lab: setup ## JupyterLab on the notebooks; another port: make lab PORT=8890
	$(BIN)/jupyter lab --notebook-dir . --port $(PORT) $(if $(filter 0,$(shell id -u)),--allow-root)

bench: setup ## training and serving speed, on this machine
	$(BIN)/lados bench train
	$(BIN)/lados bench serve

STEP = step() { local s=$$SECONDS; echo "== $$1"; shift; "$$@"; echo "   $$((SECONDS - s)) s"; }; export PATH="$(BIN):$$PATH";
IN_STEP = step "notebooks, modules and README in step" python tools/sync.py; step "style" ruff check lados fronts tests tools setup.py;
# Notebooks run three at a time, one thread each, for some of them wait more than they compute. The papermill notebooks need a run folder: the tests of the command execute them.
NBDEV = env OMP_NUM_THREADS=1 LADOS_THREADS=1 TQDM_DISABLE=1 nbdev-test --n-workers 3 --timing
PYTEST = python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=10 $(FAILED)
FAILED = $(if $(AGAIN),--last-failed)

test: setup ## notebooks in step, clean and running, style, tests: all but the longest, see test-long
	@$(STEP) $(IN_STEP) \
	step "library notebooks and tutorials" $(NBDEV) --skip-folder-re '^([_.]|papermill$$|apps$$)'; \
	echo "== tests"; $(PYTEST)

test-fast: setup ## two minutes: style, the notebooks of core, data and model, and tests/unit
	@$(STEP) $(IN_STEP) \
	step "notebooks of core, data and model" $(NBDEV) --skip-folder-re '^([_.]|papermill$$|apps$$|tutorials|synthetic|runs|serve|jobs|ui|bench|cli)'; \
	echo "== tests/unit"; $(PYTEST) tests/unit

test-long: setup ## ten minutes: the tests that take over 20 s each, of many processes: kills over jobs, the closing of the loop, benches, the site
	@$(STEP) $(PYTEST) -m long

COVERED = coverage report --format=total --include="$$folder/*.py"

coverage: setup ## which lines the tests reach, processes that they start included; of some tests: make coverage TESTS=tests/unit
	@export PATH="$(BIN):$$PATH"; coverage erase; \
	coverage run -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not fronts" $(TESTS) || echo "tests failed: what was reached is counted all the same"; \
	coverage combine -q; coverage report --skip-covered --sort=miss | tail -n +1; \
	for folder in $$(find lados -type d ! -name __pycache__ | sort); do echo "$$folder $$($(COVERED)) %"; done

test-fronts: setup ## minutes: both front ends in Chromium against a running API, and accessibility of every page
	@export PATH="$(BIN):$$PATH"; python -m pytest -q -n 2 --dist loadfile -m fronts tests/fronts --durations=10 $(FAILED)

test-deploy: setup ## images, Compose and alerts, really run, where Docker or Podman works; app and lab too: DEPLOY_ALL=1
	@export PATH="$(BIN):$$PATH"; python -m pytest -q -p no:xdist --durations=10 tests/deploy $(FAILED)

images: ## build the images with Docker or Podman; only some: make images TARGETS="serve app"
	$(PYTHON) tools/containers.py build $(or $(TARGETS),serve jobs app worker lab fronts)

outputs: setup ## execute notebooks whose code changed and save what they show; all of them: make outputs ALL=1
	$(BIN)/python tools/outputs.py run $(if $(ALL),--all)

MKDOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

docs: setup ## the documentation site, into _docs/
	$(MKDOCS) build --strict -q && echo "_docs/index.html; to look at it with search: make docs-serve"

docs-serve: setup ## the documentation on http://127.0.0.1:8001, built again when a notebook changes
	@echo "building the pages, about half a minute; then they are at http://127.0.0.1:8001, until Ctrl-C"
	$(MKDOCS) serve -q -a 127.0.0.1:8001

readme: setup ## write README.md from nbs/index.ipynb
	$(BIN)/python tools/sync.py readme

clean: ## remove caches and build outputs; data, runs, jobs, schedules, promotions and .venv stay
	rm -rf build dist _docs .coverage .coverage.* *.egg-info .pytest_cache .ruff_cache .lados/cache .lados/bench .lados/engines nbs/.last_checked
	find lados nbs tests tools -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
