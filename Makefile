# make run    the whole chain on the embedded model, from an empty clone to sound and a report
# make test   the tests
# make check  format, lint and types, as in CI

PYTHON ?= python3
RECIPE ?= engines/demo-w8a8.toml
BUNDLE  = $(basename $(RECIPE))
BIN    := .venv/bin

.PHONY: run test check format
.DEFAULT_GOAL := run

# Installs once; again only when what is to be installed changed.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all]'
	touch $@

run: .venv/.installed
	$(BIN)/quaver run $(RECIPE)
	$(BIN)/quaver generate $(BUNDLE) --prompt "a soft low cello note" --seed 1 --out $(BUNDLE)/cello.wav
	@echo "the report:  $(BUNDLE)/report.html"
	@echo "the sound:   $(BUNDLE)/cello.wav"

# One thread each, or two workers on two cores fight over four. A worker that dies ends the run: one that is started
# in its place may wait forever. Files stay in the order that tests/conftest.py gives them.
test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

check: .venv/.installed .cache/types/quaver
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The type checker finds packages by folder name, and this folder is not called quaver.
.cache/types/quaver:
	mkdir -p $(@D)
	ln -sfn ../.. $@
