# The commands of the README. All of them set up Python and JAX first (launch/setup.sh), which a second time is a
# matter of milliseconds. Variables:
#   JAX=auto|cpu|cuda12|cuda13|tpu  which JAX to install; by itself the one for this machine
#   PYTHON=PATH                     which Python (3.11 or newer) to make .venv with; by itself the first on PATH
#   ARGS='...'                      more arguments for what is run, e.g. make demo ARGS=--config.seed=1

JAX =
PYTHON =
ARGS =
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint benchmarks digits clean

help: ## these lines
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | tr '|' '\t' | expand -t 18

setup: ## make .venv with the exact versions of requirements.txt and the JAX for this machine
	@bash launch/setup.sh '--jax=$(JAX)' '--python=$(PYTHON)'

demo: setup ## train and evaluate on the digits; a minute or two on a CPU
	$(RUN) -m gradmix_jax.main --config=configs/digits_osr.py --workdir=runs/demo $(ARGS)

test: setup ## run the tests
	$(RUN) -m pytest -n 2 --dist=loadfile $(ARGS)

test-slow: setup ## run the tests that take minutes
	$(RUN) -m pytest -m slow --timeout=3600 $(ARGS)

lint: setup ## check style and shell scripts
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	.venv/bin/shellcheck -x launch/*.sh .ci/run

benchmarks: setup ## every benchmark of benchmarks/README.md, tables into runs/benchmarks; half an hour on two cores
	$(RUN) benchmarks/everything.py runs/benchmarks $(ARGS)

PROTOCOL := $(RUN) -m gradmix_jax.protocol --seeds=0,1,2 --config=configs/digits_osr.py
digits: setup ## the digits results of the README: 5 trials x 3 seeds of 5 methods, an hour on two cores
	for recipe in input layer none cutmix; do \
	  $(PROTOCOL):$$recipe --workdir=runs/digits/$$recipe $(ARGS) || exit; \
	done
	$(PROTOCOL) --config.phases[0].epochs=0 --workdir=runs/digits/untrained $(ARGS)
	$(RUN) -m gradmix_jax.report runs/digits/*/trial* --out=runs/digits/report

clean: ## remove what make made, but never runs/
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
