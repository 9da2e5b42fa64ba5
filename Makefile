# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install run space test lint format clean
help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(STAMP)  ## create .venv with the package and everything it needs

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

run: $(STAMP)  ## take the digits recipe through the whole trip and print its results
	$(BIN)/edvit run recipes/digits.yaml

space: run  ## fill space_app/model/ with the digits ensemble and open the demo on 127.0.0.1:7860
	$(BIN)/python space_app/assemble.py work/digits/09_card/ensemble
	$(BIN)/python space_app/app.py

test: $(STAMP)  ## the whole test suite, offline
	$(BIN)/python -m pytest -q

lint: $(STAMP)  ## ruff, ruff format check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## format and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove results and caches, keep the environment
	rm -rf work .pytest_cache .mypy_cache .ruff_cache .hypothesis
