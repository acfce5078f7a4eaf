"""Snakemake's scheduler in a run of many jobs: how many timers it keeps, with this project's stand-in and without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from workflow_copy import Workflow

JOBS = 4
COUNT = """
onsuccess:
    from threading import Timer, enumerate as threads
    print("timers:", sum(isinstance(thread, Timer) for thread in threads()))
"""
SNAKEFILE = """
rule all:
    input: expand("{job}.txt", job=range(JOBS))

rule job:
    output: "{job}.txt"
    shell: "touch {output}"

onstart:
    START
"""


@pytest.mark.parametrize("ours", [True, False])
def test_one_timer_however_many_jobs_ended(tmp_path: Path, ours: bool) -> None:
    start = "from shallow_signals.scheduling import keep_one_timer; keep_one_timer()" if ours else "pass"
    text = SNAKEFILE.replace("JOBS", str(JOBS)).replace("START", start) + COUNT
    (tmp_path / "Snakefile").write_text(text, encoding="utf-8")
    call = [sys.executable, "-m", "snakemake", "--cores", "1", "--max-jobs-per-timespan", "1000/6s"]
    found = subprocess.run(call, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    timers = int(found.split("timers:")[1].split()[0])
    assert timers == 1 if ours else timers >= JOBS  # else: Snakemake is mended, and the stand-in can go


def test_a_run_of_the_study_keeps_one_timer(workflow: Workflow) -> None:
    with (workflow.folder / "Snakefile").open("a", encoding="utf-8") as snakefile:
        snakefile.write(COUNT)
    call = ["--configfile", "micro.yaml", "--cores", "1", "--max-jobs-per-timespan", "1000/600s"]
    found = workflow.run(*call, "--until", "ingest_dataset", "--", "all").stdout
    assert found.count("Rule: ingest_dataset") > 1
    assert "timers: 1\n" in found
