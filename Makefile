# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JS := work/javascript
BROWSER := work/browser/.installed
FLEET := work/fleet/.installed
KSERVE := work/kserve/.installed

.PHONY: help install run space test test-js test-browser test-fleet docs lint format clean
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(STAMP)  ## create .venv with the package and everything it needs

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

run: $(STAMP)  ## take the digits recipe through the whole trip and print its results
	$(BIN)/edvit run recipes/digits.yaml

space: $(STAMP)  ## open the page with its bundled ensembles on 127.0.0.1:7860
	$(BIN)/edvit space run

# Rewritten tests and compiled modules are kept, whatever the shell says: each of a hundred processes would compile anew.
test: $(STAMP)  ## the whole test suite, offline
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n logical --dist loadfile

test-js: $(STAMP) $(JS)/.installed  ## run the model card's JavaScript in node
	EDVIT_REQUIRE_NODE=1 $(BIN)/python -m pytest -q tests/card/test_javascript.py

# Install scripts stay off: the one of onnxruntime-node would fetch CUDA, which no test needs.
$(JS)/.installed: tests/card/javascript/package.json tests/card/javascript/package-lock.json
	@command -v node >/dev/null && command -v npm >/dev/null || { echo "node and npm are needed to run the card's JavaScript: install Node.js 18 or newer"; exit 1; }
	@node -e 'process.exit(process.versions.node.split(".")[0] < 18 ? 1 : 0)' || { echo "Node.js 18 or newer is needed, this is $$(node --version)"; exit 1; }
	mkdir -p $(JS)
	cp tests/card/javascript/package.json tests/card/javascript/package-lock.json $(JS)/
	npm ci --prefix $(JS) --ignore-scripts --no-audit --no-fund || { echo "npm could not install the packages of tests/card/javascript (see above): no code was tested. If the registry cannot be reached, try again later"; exit 1; }
	touch $@

test-browser: $(STAMP) $(BROWSER)  ## drive the Space in Chromium
	$(BIN)/python -m pytest -q --timeout=120 tests/browser

# Playwright drives a Chromium of the system: its own download of one is never used.
$(BROWSER): pyproject.toml | $(STAMP)
	@mkdir -p $(@D)
	@test -n "$$EDVIT_CHROMIUM" || command -v chromium || command -v chromium-browser || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && { apt-get update -qq || true; } && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } || { \
	  echo "Chromium is needed to test the page: install it (Debian: apt-get install chromium), or name one in EDVIT_CHROMIUM"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]' || { echo "pip could not install Playwright (see above): the page was not tested. If the index cannot be reached, try again later"; exit 1; }
	touch $@

test-fleet: $(STAMP) $(FLEET) $(KSERVE)  ## several machines: a Ray fleet in network namespaces or on loopback, and KServe's own server
	EDVIT_REQUIRE_FLEET=1 $(BIN)/python -m pytest -q -s -n 0 --timeout=300 tests/fleet
	$(BIN)/python -m pytest -q -s -n 0 --timeout=300 tests/fleet/cluster

$(FLEET): pyproject.toml constraints.txt | $(STAMP)
	@mkdir -p $(@D)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]' || { echo "pip could not install Ray (see above): no fleet was tested. If the index cannot be reached, try again later"; exit 1; }
	touch $@

# KServe pins other packages than this checkout: its server has an environment of its own, with the base of ours.
$(KSERVE): pyproject.toml constraints.txt | $(STAMP)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check kserve==0.21.0 numpy onnxruntime pyyaml typer rich || { echo "pip could not install KServe's server (see above): it was not tested. If the index cannot be reached, try again later"; exit 1; }
	touch $@

docs: $(STAMP)  ## write the pages of docs/ that are read from the code
	$(BIN)/python docs/generate.py

lint: $(STAMP)  ## ruff, ruff format check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## format and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove results and caches, keep the environment
	rm -rf work .pytest_cache .mypy_cache .ruff_cache .hypothesis
