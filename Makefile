# The commands of the README. Each sets up Python and JAX first (launch/setup.sh), which later runs skip quickly.
# Variables:
#   JAX=auto|cpu|cuda12|cuda13|tpu  the JAX to install; default: the one for this machine
#   PYTHON=PATH                     the Python (3.11 or newer) to create .venv with; default: the first on PATH
#   ARGS='...'                      more arguments for the command, e.g. make demo ARGS=--config.seed=1

JAX =
PYTHON =
ARGS =
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint docs benchmarks digits clean audit sbom

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | tr '|' '\t' | expand -t 18

setup: ## create .venv with the pinned versions of requirements.txt and the JAX for this machine
	@bash launch/setup.sh '--jax=$(JAX)' '--python=$(PYTHON)'

demo: setup ## train and evaluate on digits; one or two minutes on a CPU
	$(RUN) -m gradmix_jax.main --config=configs/digits_osr.py --workdir=runs/demo $(ARGS)

test: setup ## run the tests
	$(RUN) -m pytest -n 2 --dist=loadfile $(ARGS)

test-slow: setup ## run the tests that take minutes
	$(RUN) -m pytest -m slow --timeout=3600 $(ARGS)

lint: setup ## check the style of Python files (ruff) and shell scripts (shellcheck)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	PATH=".venv/bin:$$PATH" shellcheck -x launch/*.sh .ci/run

audit: ## check the pinned versions against databases of known vulnerabilities; skipped without a network
	bash launch/audit.sh

sbom: setup ## write sbom.json, the software bill of materials of .venv (CycloneDX)
	$(RUN) launch/sbom.py $(ARGS)

docs: setup ## build the documentation site, docs/_build/html; warnings and broken links are errors
	$(RUN) -m pip install -qq --disable-pip-version-check --no-input -r docs/requirements.txt
	$(RUN) -m sphinx -q -W --keep-going -c docs -d docs/_build/doctrees . docs/_build/html $(ARGS)
	@echo "docs/_build/html/index.html"

benchmarks: setup ## run every benchmark of benchmarks/README.md into runs/benchmarks; half an hour on two cores
	PYTHONPATH=. $(RUN) benchmarks/everything.py runs/benchmarks $(ARGS)

PROTOCOL := $(RUN) -m gradmix_jax.protocol --seeds=0,1,2 --config=configs/digits_osr.py
digits: setup ## reproduce the digits table of the README: 5 splits x 3 seeds x 5 methods, an hour on two cores
	for recipe in input layer none cutmix; do \
	  $(PROTOCOL):$$recipe --workdir=runs/digits/$$recipe $(ARGS) || exit; \
	done
	$(PROTOCOL) --config.phases[0].epochs=0 --workdir=runs/digits/untrained $(ARGS)
	$(RUN) -m gradmix_jax.report runs/digits/*/trial* --out=runs/digits/report

clean: ## remove what make created, except runs/
	rm -rf .venv docs/_build .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
