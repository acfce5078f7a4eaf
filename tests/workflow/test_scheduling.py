"""Snakemake's scheduler in a run of many jobs: how many timers it keeps, with this project's stand-in and without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

JOBS = 4
SNAKEFILE = """
from threading import Timer, enumerate as threads

rule all:
    input: expand("{job}.txt", job=range(JOBS))

rule job:
    output: "{job}.txt"
    shell: "touch {output}"

onstart:
    START

onsuccess:
    print("timers:", sum(isinstance(thread, Timer) for thread in threads()))
"""


@pytest.mark.parametrize("ours", [True, False])
def test_one_timer_however_many_jobs_ended(tmp_path: Path, ours: bool) -> None:
    start = "from shallow_signals.scheduling import keep_one_timer; keep_one_timer()" if ours else "pass"
    (tmp_path / "Snakefile").write_text(SNAKEFILE.replace("JOBS", str(JOBS)).replace("START", start), encoding="utf-8")
    call = [sys.executable, "-m", "snakemake", "--cores", "1", "--max-jobs-per-timespan", "1000/6s"]
    found = subprocess.run(call, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    timers = int(found.split("timers:")[1].split()[0])
    assert timers == 1 if ours else timers >= JOBS  # else: Snakemake is mended, and the stand-in can go
