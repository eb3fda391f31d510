# The commands of the README, and the versions that each of them installs.
PYTHON ?= python3
UV_VERSION := 0.13.9
# PyTorch's CPU build where there is no GPU (it is gigabytes smaller); its index may be out of reach, PyPI's build runs too.
TORCH := --torch-backend=auto
PYTEST_ARGS ?=
TORTURE_ARGS ?=
# What depends most on the libraries' versions: CI runs these on the oldest and the newest set, and everything on the lock.
VERSION_TESTS := tests/modeling tests/training tests/recipes tests/embedding tests/test_hub.py tests/sandbox

UV := .uv/bin/uv
INSTALL = $(UV) pip install --quiet --compile-bytecode --editable '.[dev]' --python
METADATA := setup.cfg pyproject.toml

REAL_TESTS := tests/real tests/modeling/test_generation_unicorn.py::test_quantised_cache_gives_the_same_answer_up_to_its_rounding

.PHONY: torture demo docs test test-oldest test-newest test-real version-tests quality lock bench clean help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: .venv/.installed  ## the whole path on a CPU, offline: text in, answers about pictures out
	.venv/bin/unicorn-hf demo --output demo-output

test: .venv/.installed quality  ## lint, then the tests, on the locked versions
	.venv/bin/python -m pytest $(PYTEST_ARGS)

test-oldest: .venv-oldest/.installed  ## the tests on the oldest version of every dependency
	.venv-oldest/bin/python -m pytest $(PYTEST_ARGS)

test-newest: .venv-newest/.installed  ## the tests on the newest version of every dependency
	.venv-newest/bin/python -m pytest $(PYTEST_ARGS)

version-tests:
	@echo $(VERSION_TESTS)

test-real: .venv/.installed  ## both stages with a real pretrained model, Gemma 3 270M, on the locked versions; most of an hour
	.uv/bin/uv pip install --quiet --python .venv --constraint requirements/lock.txt --editable '.[real]'
	.venv/bin/python -m pytest -m '' $(REAL_TESTS)

torture: .venv/.installed  ## broken input on every command, and a power cut at every write; a quarter of an hour
	.venv/bin/python tests/torture $(TORTURE_ARGS)

quality: .venv/.installed  ## ruff: lint and format; mypy: types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

lock: $(UV)  ## write the two sets of versions anew: the newest of today as the lock, and the floors of setup.cfg
	$(UV) pip compile --quiet --no-header --no-annotate --upgrade --universal --python-version 3.10 --extra real \
		setup.cfg --output-file requirements/lock.txt
	$(UV) pip compile --quiet --no-header --no-annotate --upgrade --resolution lowest-direct \
		--python-version 3.11 --extra dev setup.cfg --output-file requirements/oldest.txt

docs: .venv-docs/.installed  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

bench: .venv/.installed  ## every measured number of docs/measured.md
	for script in benchmarks/*.py; do echo "== $$script"; .venv/bin/python $$script || exit 1; done

clean:  ## remove the environments and what the demo made
	rm -rf .uv .venv .venv-docs .venv-oldest .venv-newest demo-output build site *.egg-info

$(UV):
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet uv==$(UV_VERSION)

# An environment is made once, and again when what it is made of changes. The versions are constraints, not requirements:
# the CUDA libraries that the lock names are installed where PyTorch's build asks for them, and not beside its CPU build.
.venv/.installed: requirements/lock.txt $(METADATA) | $(UV)
	test -x $(@D)/bin/python || $(UV) venv --quiet --python $(PYTHON) $(@D)
	$(INSTALL) $(@D) $(TORCH) --constraint $< 2>/dev/null || $(INSTALL) $(@D) --constraint $<
	touch $@

.venv-oldest/.installed: requirements/oldest.txt $(METADATA) | $(UV)
	test -x $(@D)/bin/python || $(UV) venv --quiet --python $(PYTHON) $(@D)
	$(INSTALL) $(@D) $(TORCH) --constraint $< 2>/dev/null || $(INSTALL) $(@D) --constraint $<
	touch $@

# Made anew for every run: what is the newest changes by itself.
.venv-newest/.installed: $(METADATA) FORCE | $(UV)
	test -x $(@D)/bin/python || $(UV) venv --quiet --python $(PYTHON) $(@D)
	$(INSTALL) $(@D) --upgrade $(TORCH) 2>/dev/null || $(INSTALL) $(@D) --upgrade
	touch $@

# The pages are made from the sources as text, so this environment has no torch, and not this package either.
.venv-docs/.installed: pyproject.toml | $(UV)
	test -x $(@D)/bin/python || $(UV) venv --quiet --python $(PYTHON) $(@D)
	$(UV) pip install --quiet --group docs --python $(@D)
	touch $@

FORCE:
