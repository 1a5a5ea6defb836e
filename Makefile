# make demo | make test | make glue-smoke | make lint: each makes .venv first; a second call reuses it.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin

.PHONY: demo test test-slow glue-smoke lint format clean study studies-gpu

demo: $(STAMP)
	$(BIN)/composer train.py yamls/demo_mincmi.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -q -m 'not slow'

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

# Every GLUE task by every recipe, from files and from a `datasets` cache, with a tiny model.
glue-smoke: $(STAMP)
	$(BIN)/python benchmarks/glue_smoke.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

STUDY_DATA := runs/data/trec.tsv
SEEDS ?= 32
JOBS ?= 4

# Under an hour on two cores; a second call does what is left.
study: $(STAMP) $(STUDY_DATA)
	$(BIN)/composer-cmi sweep studies/mincmi_small.yaml --jobs 2
	$(BIN)/composer-cmi report runs/studies/mincmi_small

# All studies with many seeds, for a machine with a GPU: JOBS runs share it.
studies-gpu: $(STAMP) $(STUDY_DATA)
	for study in mincmi_small start_and_form stress distill_l6_l3; do \
	  $(BIN)/composer-cmi sweep studies/$$study.yaml name=$${study}_gpu seeds=$(SEEDS) --jobs $(JOBS); \
	  $(BIN)/composer-cmi report runs/studies/$${study}_gpu || exit 1; \
	done

$(STUDY_DATA):
	$(BIN)/python studies/fetch_data.py runs/data

# Only what defines the environment makes it anew.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo,peft,dev]'
	touch $(STAMP)

# runs/ holds results: it is yours to delete.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
