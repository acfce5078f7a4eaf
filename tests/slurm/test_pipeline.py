"""The demo in miniature through `--profile slurm`: each job asks for what its rule says, and gets it."""

from __future__ import annotations

import json
from collections import Counter

import pandas as pd
import pytest

from conftest import Call, jobs, said, tres
from sbatch_lines import parse
from workflow_copy import Workflow

ON_GPUS = {"train_reward_model": 2, "train_dpo": 2, "score_heldout": 1, "score_benchmark": 1}
ON_GPUS |= {"score_base_logprobs": 1, "score_dpo_logprobs": 1}


@pytest.fixture(scope="module")
def pipeline(miniature: Call) -> tuple[Workflow, list[dict[str, str]]]:
    """The finished run, and what its jobs were planned to ask for."""
    assert miniature.process.wait(timeout=900) == 0, said(miniature.workflow)[-6000:]
    return miniature.workflow, miniature.planned


def test_every_job_got_what_its_rule_asks_for(pipeline: tuple[Workflow, list[dict[str, str]]]) -> None:
    workflow, planned = pipeline
    records = jobs(workflow)
    rules = [record["Comment"].partition("_wildcards_")[0] for record in records]
    assert Counter(rules) == Counter(job["rule"] for job in planned)
    assert set(ON_GPUS) <= set(rules)
    lines = {job["rule"]: job["line"] for job in planned}
    for rule, record in zip(rules, records, strict=True):
        asked, got = parse(lines[rule]), tres(record["AllocTRES"])
        assert record["State"] == "COMPLETED"
        assert record["Partition"] == asked["-p"]
        assert minutes(record["Timelimit"]) == int(asked["-t"])
        assert megabytes(got["mem"]) == int(asked["--mem"])
        assert got["node"] == asked["--nodes"] == "1"
        if rule in ON_GPUS:
            assert asked["--gpus"] == f"a100:{ON_GPUS[rule]}"
            assert got["gres/gpu"] == got["gres/gpu:a100"] == got["cpu"] == str(ON_GPUS[rule])
            assert record["NodeList"] in ("a100-1", "a100-2")
        else:
            assert "--gpus" not in asked and not [name for name in got if "gpu" in name]
            assert (got["cpu"], record["NodeList"]) == ("1", "cpu-1")


def test_results_are_whole(pipeline: tuple[Workflow, list[dict[str, str]]]) -> None:
    results = pipeline[0].folder / "results/micro"
    table = pd.read_csv(results / "tables/table1.csv")
    assert table["value"].between(0, 1).all() and len(table) > 0
    assert (results / "figures/figure2.png").read_bytes().startswith(b"\x89PNG")
    for folder in ("reward/one/full", "reward/one/head50", "dpo/one/full"):
        assert json.loads((results / f"models/{folder}/seed1/training.json").read_text())["pairs"] == 64


def test_logs_name_job_and_devices(pipeline: tuple[Workflow, list[dict[str, str]]]) -> None:
    workflow, _ = pipeline
    trained = next(job for job in jobs(workflow, "train_reward_model") if "_full_" in job["Comment"])
    first, second = (workflow.folder / "logs/micro/train_reward_model/one/full/seed1.log").read_text().splitlines()[:2]
    assert f"SLURM job {trained['JobID']}" in first
    assert len(second.removeprefix("devices ").split(",")) == 2


def minutes(limit: str) -> int:
    """Of SLURM's [days-]hours:minutes:seconds."""
    days, _, rest = limit.rpartition("-")
    hours, mins, _ = rest.split(":")
    return int(days or 0) * 1440 + int(hours) * 60 + int(mins)


def megabytes(amount: str) -> float:
    """Of SLURM's 600M or 31.25G."""
    return float(amount[:-1]) * {"M": 1, "G": 1024, "T": 1024**2}[amount[-1]]
