# make demo | make test | make glue-smoke | make lint: each makes .venv first; a second call reuses it.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin

.PHONY: demo test test-slow glue-smoke lint format clean study studies-gpu partners kill-test mutants faults coverage overhead \
  gpu-checks

demo: $(STAMP)
	$(BIN)/composer train.py yamls/demo_mincmi.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -q -m 'not slow'

# With the extra `ray`, which only the sweep's second backend needs.
test-slow: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[ray]'
	$(BIN)/python -m pytest -q -m slow

# Every GLUE task by every recipe, from files and from a `datasets` cache, with a tiny model.
glue-smoke: $(STAMP)
	$(BIN)/python benchmarks/glue_smoke.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

SEEDS ?= 32
JOBS ?= 4

# Under an hour on two cores; a second call does what is left.
study: $(STAMP)
	$(BIN)/composer-cmi sweep studies/mincmi_small.yaml --jobs 2
	$(BIN)/composer-cmi report runs/studies/mincmi_small

# All studies with many seeds, for a machine with a GPU: JOBS runs share it.
studies-gpu: $(STAMP)
	for study in mincmi_small start_and_form stress distill_l6_l3; do \
	  $(BIN)/composer-cmi sweep studies/$$study.yaml name=$${study}_gpu seeds=$(SEEDS) --jobs $(JOBS); \
	  $(BIN)/composer-cmi report runs/studies/$${study}_gpu || exit 1; \
	done

# What a machine with two cores does in minutes each; all of it is exact, none of it needs a GPU.
partners: $(STAMP)
	WRITE_PARTNERS=1 $(BIN)/python -m pytest -q tests/test_partners.py

kill-test: $(STAMP)
	$(BIN)/python tests/kill_and_resume.py

mutants: $(STAMP)
	$(BIN)/python tests/mutants.py

# Over a hundred kills, full disks and damaged files: a quarter of an hour on two cores.
faults: $(STAMP)
	$(BIN)/python tests/faults.py

# Branch coverage of everything outside data/, run/, study/ and the command line, by one process: what ranks cover is not counted.
CORE_TESTS := $(addprefix tests/test_,$(addsuffix .py,functional centroids metrics feature_architectures feature_modules \
  feature_hooks loss cmi_training cmi_term cmi_trouble registry cli teacher logit_cache distillation_loss \
  distillation_checks distillation_exactness distillation_resume resume partners))
coverage: $(STAMP)
	$(BIN)/python -m pytest -q -m 'not slow and not world_size' --cov --cov-report=term-missing --cov-fail-under=95 \
	  $(CORE_TESTS)

overhead: $(STAMP)
	$(BIN)/python benchmarks/overhead.py

# On a machine with a GPU: NCCL, FSDP1, mixed precision, and the overhead there.
gpu-checks: $(STAMP)
	PYTHON=$(BIN)/python sh benchmarks/gpu_checks.sh

# Only what defines the environment makes it anew.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo,peft,dev]'
	touch $(STAMP)

# runs/ holds results: it is yours to delete.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
