# make demo | make test | make lint: each makes .venv first; a second call reuses it.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint format clean

demo: $(STAMP)
	$(BIN)/composer train.py yamls/demo_mincmi.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -q -m 'not slow'

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Only what defines the environment makes it anew.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo,peft,dev]'
	touch $(STAMP)

# runs/ holds results: it is yours to delete.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
