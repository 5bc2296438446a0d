# make demo | test | lint set up .venv first, with what each needs; on a machine that has it already, that costs nothing.
# ARGS passes arguments on: make test ARGS="-k clock -x"

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready
# What the demo needs; with ARGS=--web the page, too. Neither takes the tools of development, which $(READY) has.
DEMO_READY := $(VENV)/$(if $(findstring --web,$(ARGS)),.web-ready,.demo-ready)
NEW_ENOUGH := 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, but {sys.executable} \
	is {sys.version.split()[0]}. Name another: make clean, then make demo PYTHON=python3.12")'
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

.PHONY: demo test shidoku docs space-static lint constraints clean
.DELETE_ON_ERROR:

demo: $(DEMO_READY)
	$(BIN)/flm demo $(ARGS)

test: export HF_HUB_OFFLINE := 1
test: export TOKENIZERS_PARALLELISM := false
test: export PYTHONUNBUFFERED := 1
test: export OMP_NUM_THREADS := 1
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# The 4x4 Sudoku models from scratch, and their measures: what is shipped is overwritten.
shidoku: export OMP_NUM_THREADS := 1
shidoku: $(READY)
	rm -rf runs/shidoku runs/shidoku-fmlm runs/shidoku-mdlm runs/shidoku-matched
	$(BIN)/flm train recipes/shidoku.yaml
	$(BIN)/flm distill recipes/shidoku-fmlm.yaml
	$(BIN)/python -m benchmarks.baselines.mdlm recipes/shidoku.yaml training.max_steps=4000
	$(BIN)/flm distill recipes/shidoku-matched.yaml
	$(BIN)/python -m benchmarks.ship recipes/shidoku.yaml hub_cards/flm-shidoku --half
	$(BIN)/python -m benchmarks.ship recipes/shidoku-matched.yaml hub_cards/fmlm-shidoku --half
	$(BIN)/python -m benchmarks.few_step shidoku coverage
	$(BIN)/python -m benchmarks.cards

# The documentation site, into build/site: open build/site/index.html. Warnings are errors.
docs: export NO_MKDOCS_2_WARNING := true
docs: $(READY)
	$(BIN)/mkdocs build --strict

# What the static Space carries beside its page: libraries from npm, exported models. The old ones go once all is made.
space-static: $(READY)
	$(BIN)/python -m hub_cards.space_static

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# $(call install,WHAT,SAID): torch goes first and by its exact version: left to a dependency's range, pip takes the newest
# build there is, with gigabytes of CUDA libraries. Packages already there are brought to the versions asked for, not
# reinstalled. pip shows its progress in a terminal; in a log the lines before it have to do.
define install
	@test -x $(BIN)/pip || { $(PYTHON) -c $(NEW_ENOUGH) && $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -c $(NEW_ENOUGH)
	@echo "Installing $(TORCH): 200 MB as the CPU's build, some gigabytes as that for CUDA; minutes, once."
	@test -t 1 || quiet=-q; $(PIP) install $$quiet -c constraints.txt $(TORCH)
	@echo "Installing $(2)."
	@test -t 1 || quiet=-q; $(PIP) install $$quiet -c constraints.txt -e "$(1)"
endef

$(VENV)/.demo-ready: pyproject.toml constraints.txt
	$(call install,.,transformers and what else the demo needs: 130 MB)
	touch $@

$(VENV)/.web-ready: pyproject.toml constraints.txt
	$(call install,.[space],transformers and gradio and what else the page needs: some 200 MB)
	touch $@ $(VENV)/.demo-ready

$(READY): pyproject.toml constraints.txt
	$(call install,.[dev],the package with its extras and the tools of development: some 500 MB)
	touch $@ $(VENV)/.web-ready $(VENV)/.demo-ready

# Resolves everything anew in a venv of its own, to the newest versions that pyproject.toml allows, except torch,
# which stays at the line in constraints.txt: edit that line first to move it.
constraints: FRESH := build/constraints
constraints:
	rm -rf $(FRESH)
	$(PYTHON) -m venv $(FRESH)
	echo "$(TORCH)" > $(FRESH)/torch.txt
	$(FRESH)/bin/python -m pip install -q -c $(FRESH)/torch.txt $(TORCH)
	$(FRESH)/bin/python -m pip install -q -c $(FRESH)/torch.txt -e ".[dev]"
	$(FRESH)/bin/python -m pip freeze --all --exclude pip --exclude flow-language-models > $(FRESH)/frozen.txt
	sed -n '/^#/p' constraints.txt > $(FRESH)/new.txt
	sed -E -e '/^torch==/s/\+.*//' -e '/^(nvidia-|cuda-|triton==)/d' $(FRESH)/frozen.txt >> $(FRESH)/new.txt
	mv $(FRESH)/new.txt constraints.txt
	rm -rf $(FRESH)

# runs/ holds what was trained: never removed from here.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
