# make demo    own environment, then the whole pipeline on planted data: every table and figure, offline
# make test    static checks and all tests
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SNAKEMAKE := $(BIN)/snakemake
READY := $(VENV)/.ready
LOCK := requirements.lock envs/without-dependencies.txt
OPENRLHF := .openrlhf
export PYTHONHASHSEED := 0
export TOKENIZERS_PARALLELISM := false

.PHONY: env envs openrlhf-parser demo small resume test lint unit workflow e2e slurm dry-run plan schema pin download publish clean

env: $(READY)

$(READY): $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --requirement envs/without-dependencies.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# A killed Snakemake leaves its folder locked. Takes the lock off where none runs (and says so where one does).
unlock = @if compgen -G ".snakemake/locks/*" > /dev/null; then \
	$(BIN)/python -m shallow_signals.slurm_queue --local && $(SNAKEMAKE) $(1) --unlock; fi

demo: $(READY)
	$(call unlock,--profile profiles/demo)
	$(SNAKEMAKE) --profile profiles/demo all
	@echo "Tables: results/demo/tables/   figures: results/demo/figures/   probe: results/demo/probe/"

# SIZE=quick about 20 minutes, standard about two hours on two cores, full for a GPU; shuffled: the control, an hour
SIZE ?= standard
SMALL := --profile profiles/small --config size=$(SIZE) $(if $(DATA_ROOT),data_root=$(DATA_ROOT))
small: $(READY)
	$(call unlock,$(SMALL))
	@echo "Reading the data; then what the run takes on this machine, then the run."
	@$(SNAKEMAKE) $(SMALL) --quiet all --until tokenize_pairs -- all
	@$(BIN)/python -m shallow_signals.planning $(SMALL) --left --calibrate --brief
	$(SNAKEMAKE) $(SMALL) -- all

# After a Snakemake on a SLURM cluster was killed: its jobs run on, unseen. Cancel them, unlock, go on.
TARGET ?= all
resume: $(READY)
	$(BIN)/python -m shallow_signals.slurm_queue
	$(SNAKEMAKE) --profile slurm --unlock
	$(SNAKEMAKE) --profile slurm $(TARGET)

test: lint unit workflow e2e slurm

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(SNAKEMAKE) --lint
	$(BIN)/python -m shallow_signals.config.schema --check

# The environments of `--sdm conda` from their lists.
envs: $(READY)
	$(BIN)/python envs/write.py

# OpenRLHF in a folder of its own, for the tests of its backend: importable without a GPU, out of the environment's way.
openrlhf-parser: $(OPENRLHF)/.ready

$(OPENRLHF)/.ready: $(READY) envs/openrlhf-parser.txt
	rm -rf $(OPENRLHF)
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(OPENRLHF) \
		--requirement envs/openrlhf-parser.txt
	touch $@

unit: $(READY) $(OPENRLHF)/.ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile tests/unit

workflow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile tests/workflow

e2e: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/e2e

# On a real SLURM cluster that the tests start on this machine and tear down (tests/slurm/cluster.py has the packages).
slurm: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/slurm

# Every profile's plan, without running anything.
dry-run: $(READY)
	for profile in demo small gpu slurm; do $(SNAKEMAKE) --dry-run --quiet rules --profile profiles/$$profile all || exit 1; done
	$(SNAKEMAKE) --dry-run --quiet rules all

# What a run takes, before anything is submitted (docs/planning.md). FLAGS: another run's, `--profile profiles/demo`, ...
plan: $(READY)
	$(BIN)/python -m shallow_signals.planning $(FLAGS)

schema: $(READY)
	$(BIN)/python -m shallow_signals.config.schema

# Look up the revision of every hub repository of config.yaml (needs the network) and keep it in pins.json.
pin: $(READY)
	$(BIN)/python -m shallow_signals.config.pin config.yaml

# Copy a finished run's results page, with its tables and figures, to docs/results/<run>/.
RUN ?= small
publish: $(READY)
	$(BIN)/python -m shallow_signals.paper.publish results/$(RUN) docs/results/$(RUN)

# Fetch every model and data set of a run at its pinned revision, on a machine that reaches the hub; then everything else
# runs with HF_HUB_OFFLINE=1. FLAGS: another run's, such as `--configfile mine.yaml`.
DOWNLOADS := provide_model ingest_dataset prepare_instructions fetch_length_control
download: $(READY)
	$(SNAKEMAKE) --cores 4 $(FLAGS) --until $(DOWNLOADS) -- all

clean:
	rm -rf results/demo logs/demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
