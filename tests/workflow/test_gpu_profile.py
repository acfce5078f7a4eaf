"""The workstation's profile: as many jobs at a time as there are GPUs, each on its own."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest

from workflow_copy import Workflow

RULES = """
configfile: "config.yaml"
configfile: "micro.yaml"
include: "workflow/rules/common.smk"
include: "workflow/rules/experiments.smk"

rule all:
    input: expand("held/{i}.txt", i=range(5))

rule hold:
    output: "held/{i}.txt"
    log: "logs/hold/{i}.log"
    resources: **gpus(8)
    script: "workflow/scripts/hold.py"
"""
SCRIPT = """
from job import job

with job(snakemake):
    import os, time
    from pathlib import Path
    begin = time.monotonic()
    time.sleep(1.5)
    Path(snakemake.output[0]).write_text(f"{begin} {time.monotonic()} {os.environ['CUDA_VISIBLE_DEVICES']}")
"""

# Every rule of the paper's run that puts a model to work.
USERS = {"train_reward_model", "train_dpo", "score_heldout", "score_benchmark", "score_base_logprobs"}
USERS |= {"compare_ranks", "generate_outputs", "decode", "score_decoded", "read_texts"}


def test_jobs_on_a_workstation_share_no_gpu(workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    (workflow.folder / "gpus.smk").write_text(RULES)
    (workflow.folder / "workflow/scripts/hold.py").write_text(SCRIPT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("TMPDIR", str(workflow.folder))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    workflow.run("--snakefile", "gpus.smk", "--profile", "profiles/gpu", "--", "all")
    spans = [path.read_text().split() for path in (workflow.folder / "held").iterdir()]
    assert len(spans) == 5 and {device for _, _, device in spans} <= set("0123")
    meet = [(a, b) for a, b in combinations(spans, 2) if float(a[0]) < float(b[1]) and float(b[0]) < float(a[1])]
    assert meet and not [pair for pair in meet if pair[0][2] == pair[1][2]]
    assert "devices 0" in "".join(path.read_text() for path in Path(workflow.folder / "logs/hold").iterdir())


def test_every_gpu_rule_says_so(workflow: Workflow) -> None:
    """On a workstation trainings and scoring claim a GPU; the same plan on the CPU asks for none."""
    with_gpus = workflow.run("--dry-run", "--profile", "profiles/gpu", "all").stdout
    blocks = re.split(r"^(?=(?:local)?rule )", with_gpus, flags=re.MULTILINE)
    claiming = {block.split()[1].rstrip(":") for block in blocks if ", gpu=1" in block}
    assert claiming == USERS
    assert ", gpu=" not in workflow.run("--dry-run", "all").stdout
