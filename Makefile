VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test quality bench clean help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# Installed once, and again when the requirements change.
$(VENV)/.installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## the whole path on a CPU, offline: text in, answers about pictures out
	$(BIN)/unicorn-hf demo --output demo-output

test: $(VENV)/.installed quality  ## lint, then the tests
	$(BIN)/python -m pytest

quality: $(VENV)/.installed  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.installed  ## every measured number of the README
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:  ## remove the environment and what the demo made
	rm -rf $(VENV) demo-output build *.egg-info
