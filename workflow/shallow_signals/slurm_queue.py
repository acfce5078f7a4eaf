"""Jobs that a killed Snakemake has left in the SLURM queue: they go on and write the outputs that the next call makes.

`python -m shallow_signals.slurm_queue` cancels those of this folder and waits until they are gone (see `make resume`);
with `--local` it cancels nothing and refuses where anything of this folder still runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from shallow_signals.files import InputError


@dataclass(frozen=True)
class QueuedJob:
    """A job of this user that waits, runs or ends."""

    job: str
    run: str  # the run id that Snakemake printed: the name of all jobs of one call
    state: str
    rule: str

    def __str__(self) -> str:
        return f"{self.job} ({self.rule}, {self.state}, run {self.run})"


def queued_jobs(folder: Path) -> list[QueuedJob]:
    """This user's jobs that Snakemake has submitted from a folder; none where there is no SLURM."""
    if shutil.which("squeue") is None:
        return []
    asked = ["squeue", "--me", "--noheader", "--format=%i|%j|%T|%Z|%k"]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    if found.returncode:
        raise InputError(f"squeue: {found.stderr.strip()}")
    jobs = []
    for line in found.stdout.splitlines():
        job, run, state, place, comment = line.split("|", 4)
        if comment.startswith("rule_") and os.path.realpath(place) == os.path.realpath(folder):
            jobs.append(QueuedJob(job, run, state, comment.removeprefix("rule_").replace("_wildcards_", " ")))
    return jobs


def running_snakemake(folder: Path) -> list[int]:
    """Processes of this machine that run Snakemake in a folder, those inside jobs left out."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
            called = "snakemake" in [Path(word).name for word in words[:4]] and "--target-jobs" not in words
            if called and (process / "cwd").resolve(strict=True) == folder.resolve():
                found.append(int(process.name))
        except OSError:  # it has ended, or is another user's
            continue
    return sorted(found)


def refuse_running(folder: Path) -> None:
    """An `InputError` where a Snakemake of this machine runs in a folder: its lock is no leftover."""
    if alive := running_snakemake(folder):
        raise InputError(f"Snakemake still runs in {folder} (process {alive[0]}): nothing to resume")


def refuse_busy(folder: Path) -> None:
    """An `InputError` where a Snakemake runs in a folder, or where jobs of a killed one are in the queue."""
    refuse_running(folder)
    try:
        orphans = queued_jobs(folder)
    except InputError:  # SLURM's commands, but no cluster that answers
        return
    if orphans:
        raise InputError(f"a killed Snakemake has left {orphans[0]} in the queue: go on with `make resume`")


def cancel_orphans(folder: Path, patience: float = 300.0) -> list[QueuedJob]:
    """Cancel what a folder has in the queue; returns when it is gone, so that no two jobs write one output.

    An `InputError` where a Snakemake of this machine runs there, or where jobs don't end within `patience` seconds.
    """
    refuse_running(folder)
    orphans = queued_jobs(folder)
    if not orphans:
        return []
    subprocess.run(["scancel", *(job.job for job in orphans)], check=True, timeout=120)
    deadline = time.monotonic() + patience
    while left := queued_jobs(folder):
        if time.monotonic() > deadline:
            raise InputError(f"cancelled, but still in the queue: {', '.join(map(str, left))}")
        time.sleep(1)
    return orphans


if __name__ == "__main__":
    try:
        if "--local" in sys.argv[1:]:
            refuse_busy(Path.cwd())
        else:
            for cancelled in cancel_orphans(Path.cwd()):
                print(f"cancelled: {cancelled}")
    except InputError as error:
        sys.exit(f"error: {error}")
