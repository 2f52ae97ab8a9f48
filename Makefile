# Everything from a fresh clone; needs Python >= 3.11 and nothing else. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PYTEST := $(PY) -m pytest
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
PEERS := .venv-peers
COMPAT := .venv-compat
# What the oldest versions are tried on: the parts that lean on other packages.
COMPAT_TESTS := tests/test_widgets.py tests/test_widgets_wire.py tests/test_lm.py tests/test_demo_lm.py tests/test_clip.py \
	tests/test_hooks.py tests/test_sae.py tests/test_formats.py tests/test_formats_files.py tests/test_store_read.py \
	tests/test_store_collect.py tests/test_store_models.py tests/test_analysis.py tests/test_layers.py tests/test_parts.py \
	tests/test_parts_clip.py tests/test_parts_lens.py tests/test_lm_next_token.py tests/test_flow.py \
	tests/test_flow_deactivation.py tests/test_flow_steering.py tests/test_attribution.py tests/test_attribution_input.py \
	tests/test_direct_attribution.py tests/test_heads.py tests/test_logit_lens.py tests/test_vision_lens.py \
	tests/test_layer_quality.py tests/test_widgets_flow.py tests/test_widgets_atlas.py tests/test_widgets_monitor.py \
	tests/test_linking.py tests/test_shared_scripts.py tests/test_hosts_colab.py
# Tests side by side; each on one thread, so that two do not fight for the cores. JOBS=0: one after the other.
JOBS := 2
TEST_STEPS := lint types contracts js unit notebooks wheel docs browser

# Tests work without a network; a name that would have to be fetched fails instead of waiting.
unit notebooks wheel release-check docs browser screenshots: export HF_HUB_OFFLINE := 1
unit notebooks wheel release-check docs browser screenshots bench: export JUPYTER_PLATFORM_DIRS := 1

.PHONY: help setup widgets demo test lint format types contracts js unit notebooks wheel release-check docs browser bench screenshots clean peers-env test-peers test-compat

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(PY):
	@python=$$(scripts/find_python.sh) && echo "creating $(VENV) with $$python" && "$$python" -m venv $(VENV)
	@$(PY) -m pip install --quiet --upgrade pip

$(RUN_STAMP): pyproject.toml | $(PY)
	@echo "installing nb_sae into $(VENV) (torch is large: some minutes)"
	@$(PY) -m pip install --quiet -e .
	@touch $@

$(DEV_STAMP): pyproject.toml | $(PY)
	@echo "installing nb_sae and what its tests need into $(VENV) (torch is large: some minutes)"
	@$(PY) -m pip install --quiet -e '.[dev]'
	@touch $(RUN_STAMP) $@

setup: $(DEV_STAMP) ## make .venv and install the package with all that development needs

widgets: | $(PY) ## build widgets_js into nb_sae/widgets/static
	@$(PY) scripts/build_widgets.py --install-node

demo: $(RUN_STAMP) widgets ## the main job: interpret the embedded CLIP, write reports/01_interpret_clip.html
	@$(BIN)/nb-sae demo

test: $(DEV_STAMP) widgets ## every check and test, as continuous integration runs them
	@started=$$SECONDS; \
	for step in $(TEST_STEPS); do scripts/step.sh $$step $(MAKE) $$step || exit 1; done; \
	printf '\n== all %s steps passed in %s s\n' $(words $(TEST_STEPS)) $$((SECONDS - started))

lint: $(DEV_STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV_STAMP) ## ruff: repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV_STAMP) ## basedpyright
	$(BIN)/basedpyright --pythonpath $(PY)

contracts: $(DEV_STAMP) ## import-linter: who may import whom
	$(BIN)/lint-imports --no-logo

js: | $(DEV_STAMP) ## TypeScript: format, rules, types and tests
	$(PY) scripts/build_widgets.py --install-node --npm check test

unit: $(DEV_STAMP) widgets ## pytest without browser, notebooks and wheel
	OMP_NUM_THREADS=1 $(PYTEST) -q -n $(JOBS) --dist loadfile -m "not browser and not notebook and not wheel" --durations=10

notebooks: $(DEV_STAMP) widgets ## execute the tutorials
	OMP_NUM_THREADS=1 $(PYTEST) -q -n $(JOBS) --maxschedchunk 1 -m notebook --durations=0

wheel: $(DEV_STAMP) widgets ## build the wheel, install it elsewhere, import it
	$(PYTEST) -q -m wheel --durations=0

docs: $(DEV_STAMP) widgets ## the documentation in build/site, warnings are errors; EXECUTE=1: run the tutorials for it
	$(PY) scripts/docs/pages.py build/docs $(if $(EXECUTE),--execute)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build # not --quiet: what is not said is not counted as a warning
	$(PY) scripts/docs/links.py build/site

browser: $(DEV_STAMP) widgets ## headless Chromium on the offline report and on JupyterLab
	@$(PY) scripts/setup_browser.py
	$(PYTEST) -q -n $(JOBS) --dist loadfile -m browser --durations=10

release-check: $(DEV_STAMP) widgets ## a dry run of publishing: build into dist/, check, install, import; TAG=v1.2.3 checks a tag
	$(PY) scripts/release_check.py $(if $(TAG),--tag "$(TAG)")
	rm -rf dist
	$(PY) -m build --no-isolation --outdir dist .
	$(PY) -m twine check --strict dist/*
	NB_SAE_DIST=dist $(PYTEST) -q -m wheel --durations=0
	@$(PY) -m pip hash dist/*

screenshots: browser ## the browser tests leave pictures of both themes in .screens/
	@ls -1 .screens

bench: $(DEV_STAMP) widgets ## measure what the bounds promise
	@for file in benchmarks/*.py; do scripts/step.sh $$file $(PY) $$file || exit 1; done

peers-env: $(PEERS)/.installed ## make .venv-peers with the other libraries

$(PEERS)/.installed: scripts/peers_env.sh
	@scripts/peers_env.sh

test-peers: $(DEV_STAMP) $(PEERS)/.installed ## read the other libraries' files and have them read ours
	nice -n 5 $(PYTEST) -q -s tests/peers/check_peers.py

$(COMPAT)/.installed: scripts/compat_env.sh pyproject.toml
	@scripts/compat_env.sh $(OLDEST)

test-compat: $(DEV_STAMP) widgets $(COMPAT)/.installed ## the tests of widgets, models, sae and store on the oldest versions we allow
	HF_HUB_OFFLINE=1 JUPYTER_PLATFORM_DIRS=1 PYTHONPATH=. nice -n 5 $(COMPAT)/bin/python -m pytest -q $(COMPAT_TESTS)
	@$(PY) scripts/setup_browser.py
	HF_HUB_OFFLINE=1 JUPYTER_PLATFORM_DIRS=1 nice -n 5 $(PYTEST) -q -s tests/browser/check_*.py

clean: ## remove what was built and installed
	rm -rf $(VENV) build dist widgets_js/node_modules .screens .pytest_cache .ruff_cache .hypothesis
	find nb_sae/widgets/static -type f ! -name .gitkeep -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
