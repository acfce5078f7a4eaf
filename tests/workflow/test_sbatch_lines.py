"""What the paper's run asks of a SLURM cluster: every job's sbatch line, rendered by the executor's own function.

The snapshots change when a rule's resources do: `UPDATE_SNAPSHOTS=1 pytest tests/workflow/test_sbatch_lines.py` writes
them again, and the difference is read in review.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from sbatch_lines import parse, sbatch_lines, set_site
from workflow_copy import ROOT, Workflow

CARDS = {"h100": {"gpu_type": "h100", "gpus_per_job": 8}, "a100": {"gpu_type": "a100", "gpus_per_job": 4}}
TRAINING = {"train_reward_model", "train_dpo"}


@pytest.mark.parametrize("card", CARDS)
def test_every_line_of_the_papers_run(workflow: Workflow, card: str) -> None:
    set_site(workflow.folder / "profiles/slurm/config.yaml", slurm_account="study", **CARDS[card])
    jobs = sbatch_lines(workflow, "--profile", "slurm", "all")
    assert len(jobs) > 200
    for job in jobs:
        options = parse(job["line"])
        assert options["-A"] == "study"
        assert options["--nodes"] == "1"
        assert 1 <= int(options["-t"]) <= 2880
        assert 1000 <= int(options["--mem"]) <= 500000
        assert options["-p"] == ("gpu" if "--gpus" in options else "cpu")
    lines = Counter(f"{job['rule']}: {job['line']}" for job in jobs)
    text = "".join(f"{count:>4} x {line}\n" for line, count in sorted(lines.items()))
    snapshot = ROOT / "tests" / "workflow" / f"sbatch_{card}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS") == "1":
        snapshot.write_text(text, encoding="utf-8")
    assert text == snapshot.read_text(encoding="utf-8")
    asked = {job["rule"]: parse(job["line"]).get("--gpus") for job in jobs}
    for rule in TRAINING & asked.keys():
        assert asked[rule] == f"{card}:{CARDS[card]['gpus_per_job']}"
    assert asked["score_benchmark"] == f"{card}:1"
    assert asked["ingest_dataset"] is None


def test_no_gpu_is_asked_for_where_the_profile_has_none(workflow: Workflow) -> None:
    lines = [job["line"] for job in sbatch_lines(workflow, "--cores", "1", "all")]
    assert lines and not any("gpu" in line for line in lines)


def test_escalation_stops_at_the_machines_limits(workflow: Workflow) -> None:
    """The fifth attempt of everything, as `attempt` starts where Snakemake is told to."""
    jobs = sbatch_lines(workflow, "--profile", "slurm", "--attempt", "5", "all")
    fifth = {job["rule"]: parse(job["line"]) for job in jobs}
    assert fifth["train_reward_model"]["--mem"] == "500000"  # 256,000 at first
    assert fifth["decode"]["-t"] == "2880"  # 210 at first
    assert (fifth["tokenize_pairs"]["-t"], fifth["tokenize_pairs"]["--mem"]) == ("960", "256000")


def test_time_grows_with_the_work(workflow: Workflow) -> None:
    """Longer for more tokens, and on a slower card."""
    profile = workflow.folder / "profiles/slurm/config.yaml"
    minutes = {}
    for card in CARDS:
        set_site(profile, gpu_type=card, gpus_per_job=1, longest_runtime=100000)
        trained = [parse(job["line"]) for job in sbatch_lines(workflow, "--profile", "slurm", "all")
                   if job["rule"] == "train_reward_model"]  # fmt: skip
        minutes[card] = sorted(int(options["-t"]) - 120 for options in trained)
    assert minutes["h100"][-1] > 8 * minutes["h100"][0] > 0  # whole responses of the largest set, heads of the smallest
    assert minutes["a100"][-1] / minutes["h100"][-1] == pytest.approx(989 / 312, rel=0.1)
