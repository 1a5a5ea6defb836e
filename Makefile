# make demo | make test | make lint: each makes .venv first, on the versions that Composer declares; a second call reuses it.
# make test-modern: the same tests in .venv-modern, on today's torch and transformers.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check
EXTRAS := run,demo,tensorboard,peft,dev
MODERN := .venv-modern
MODERN_STAMP := $(MODERN)/.installed

.PHONY: demo test test-modern test-slow package-check startup glue-smoke lint format clean study studies-gpu partners \
  kill-test mutants fuzz faults coverage overhead gpu-checks docs notebook

demo: $(STAMP)
	$(BIN)/composer train.py yamls/demo_mincmi.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -q -m 'not slow'

test-modern: $(MODERN_STAMP)
	$(MODERN)/bin/python -m pytest -q -m 'not slow'

# The wheel in an empty environment outside the repository, as its users have it, and the tests of the sdist.
package-check: $(STAMP)
	$(BIN)/python tests/package_check.py

# With the extra `ray`, which only the sweep's second backend needs.
test-slow: $(STAMP)
	$(BIN)/python $(PIP) -e '.[ray]'
	$(BIN)/python -m pytest -q -m slow

# Every GLUE task by every recipe, from files and from a `datasets` cache, with a tiny model.
glue-smoke: $(STAMP)
	$(BIN)/python benchmarks/glue_smoke.py

# The site, in build/site; a warning is an error.
docs: $(STAMP)
	$(BIN)/python $(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

notebook: $(STAMP)
	$(BIN)/python $(PIP) -e '.[docs]'
	$(BIN)/jupyter-execute examples/own_csv.ipynb

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

# Every key changed in every way, then mutated bytes of each kind of file for so many seconds each.
SECONDS_A_FILE ?= 60
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz.py --seconds $(SECONDS_A_FILE)

# Over a hundred kills, full disks and damaged files: a quarter of an hour on two cores.
faults: $(STAMP)
	$(BIN)/python tests/faults.py

# Branch coverage of everything outside data/, run/, study/ and the command line, by one process: what ranks cover is not counted.
CORE_TESTS := $(addprefix tests/test_,$(addsuffix .py,functional centroids metrics feature_architectures feature_modules \
  feature_hooks loss cmi_training cmi_term cmi_trouble registry cli teacher logit_cache distillation_loss \
  distillation_checks distillation_exactness distillation_resume resume \
  composer_requirements partners))
coverage: $(STAMP)
	$(BIN)/python -m pytest -q -m 'not slow and not world_size' --cov --cov-report=term-missing --cov-fail-under=95 \
	  $(CORE_TESTS)

startup: $(STAMP)
	$(BIN)/python benchmarks/startup.py

overhead: $(STAMP)
	$(BIN)/python benchmarks/overhead.py --shapes minilm --batches 32

# On a machine with a GPU: NCCL, FSDP1, mixed precision, and the overhead there.
gpu-checks: $(STAMP)
	PYTHON=$(BIN)/python sh benchmarks/gpu_checks.sh

# Only what defines the environment makes it anew.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -e '.[$(EXTRAS)]'
	touch $(STAMP)

# Where pip offers a CPU build of torch, this is 2 GB without a CUDA library. No torchvision of the index imports beside
# such a build after 0.16.2 (Composer imports it and needs nothing of it here). On a machine with a GPU, or with another
# Python than 3.11: make test-modern MODERN_TORCH='torch torchvision'.
MODERN_TORCH ?= torch==2.13.0 torchvision==0.16.2
$(MODERN_STAMP): pyproject.toml modern.txt
	test -x $(MODERN)/bin/python || $(PYTHON) -m venv $(MODERN)
	for package in $(MODERN_TORCH); do $(MODERN)/bin/python $(PIP) --no-deps $$package || exit 1; done
	$(MODERN)/bin/python $(PIP) uv
	$(MODERN)/bin/uv pip install --quiet --python $(MODERN)/bin/python --override modern.txt -e '.[$(EXTRAS),onnx]'
	touch $(MODERN_STAMP)

# runs/ holds results: it is yours to delete.
clean:
	rm -rf $(VENV) $(MODERN) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
