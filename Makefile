# Needs Python 3.11 to 3.13, git and make. Packages are installed only into .venv.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup train test test-all lint docs

help:
	@echo "make train   train the quickstart retriever on this machine's own Python documentation"
	@echo "make test    ruff, mypy and the tests, without the slow ones"
	@echo "make test-all  like make test, with the slow tests"
	@echo "make docs    build the documentation into site/; a broken link or name is an error"
	@echo "make setup   only create .venv with the pinned packages (make train and make test also do this)"
	@echo ""
	@echo "PYTHON=python3.12  create .venv with this interpreter instead of python3"
	@echo "ARGS='...'         append arguments to the command, e.g. make train ARGS='trainer.max_steps=100'"

setup: $(READY)

train: $(READY)
	@echo "Training: dream-train experiment=quickstart $(ARGS)"
	@$(BIN)/dream-train experiment=quickstart $(ARGS)

test: $(READY) lint
	@echo "4/4 pytest -m 'not slow' $(ARGS)"
	@$(BIN)/pytest -m "not slow" -n auto --dist loadfile $(ARGS)

test-all: $(READY) lint
	@echo "4/4 pytest $(ARGS)"
	@$(BIN)/pytest -n auto --dist loadfile $(ARGS)

lint: $(READY)
	@echo "1/4 ruff check"
	@$(BIN)/ruff check
	@echo "2/4 ruff format --check"
	@$(BIN)/ruff format --check
	@echo "3/4 mypy"
	@$(BIN)/mypy

docs: $(READY)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -r requirements-docs.lock
	@$(BIN)/python -m mkdocs build --strict --site-dir site

$(READY): requirements.lock pyproject.toml
	@echo "Setting up .venv: some minutes the first time, a few seconds if the pinned packages are already installed"
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" 2>/dev/null || \
		{ echo "error: $(PYTHON) is `$(PYTHON) --version 2>&1`, but Python 3.11, 3.12 or 3.13 is needed; name one with PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@echo "Installing the packages pinned in requirements.lock"
	@$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	@echo "Installing this checkout, editable"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $(READY)
