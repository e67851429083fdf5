# make train   train the default network; sets everything up first
# make test    run the tests, the linters and the type checker
# make test-gpu  run the tests that need an NVIDIA GPU, on a machine that has one
# make docs    build the site in site/; runs the tutorial and the examples
# Everything is installed into .venv, once: again only when pyproject.toml changes.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test test-thorough test-gpu docs lint format clean

train: .venv/installed-models
	$(BIN)/nnfs train

test: .venv/installed-dev lint
	$(BIN)/python -m pytest -n auto

test-thorough: .venv/installed-dev
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -n auto

test-gpu: .venv/installed-dev .venv/installed-gpu
	$(BIN)/python -m pytest -m gpu

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html; for the search: $(BIN)/python -m http.server --directory site"

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.venv/installed-%: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

clean:
	rm -rf .venv build dist site *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find tinygrad_nnfs models benchmarks tests -name __pycache__ -exec rm -rf {} +
