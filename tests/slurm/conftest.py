"""One cluster for all tests of this folder, and small workflows that run on it by the real profile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import ACCOUNT, SITE, job_processes, missing

from sbatch_lines import sbatch_lines, set_site
from workflow_copy import Workflow, copy_workflow

QUICK = ("--profile", "slurm", "--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "20")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """The cluster, up; torn down when the tests end, however they end. Its absence is a failure in CI."""
    why = missing()
    if why:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(why)
        pytest.skip(why)
    script = Path(__file__).with_name("cluster.py")
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline().strip() == "ready", "the cluster did not start"
        yield
        process.stdin.close()
        assert process.wait(timeout=120) == 0
    left = [path for path in SITE.glob("*.conf") if path.is_symlink()] + daemons() + job_processes()
    assert not left, f"the cluster left behind: {left}"


@pytest.fixture(scope="session")
def on_slurm(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workflow]:
    """A copy of the workflow whose profile is filled in for the test cluster, as its user would in an editor."""

    def copy(name: str) -> Workflow:
        made = copy_workflow(tmp_path_factory.mktemp(name))
        set_site(made.folder / "profiles/slurm/config.yaml", slurm_account=ACCOUNT)
        shutil.copy(Path(__file__).with_name("drills.smk"), made.folder / "drills.smk")
        return made

    return copy


@dataclass(frozen=True)
class Call:
    """The miniature on its way: a call of Snakemake, and the jobs that it will submit."""

    workflow: Workflow
    process: subprocess.Popen[str]
    planned: list[dict[str, str]]


@pytest.fixture(scope="session")
def miniature(on_slurm: Callable[[str], Workflow]) -> Iterator[Call]:
    """Started on A100 nodes, two GPUs a training; the drills, which wait most of the time, go on beside it."""
    workflow = on_slurm("pipeline")
    set_site(workflow.folder / "profiles/slurm/config.yaml", gpu_type="a100", gpus_per_job=2, cpus_per_gpu=1)
    shutil.copy(Path(__file__).with_name("micro_slurm.yaml"), workflow.folder)
    what = ("--configfile", "micro.yaml", "micro_slurm.yaml", "--", "table1", "figure2")
    planned = sbatch_lines(workflow, "--profile", "slurm", *what)
    process = start(workflow, *QUICK, "--retries", "0", *what)
    yield Call(workflow, process, planned)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def daemons() -> list[str]:
    """SLURM's and MariaDB's processes on this machine."""
    names = {"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "slurmstepd"}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if Path(os.fsdecode(words[0]).rstrip(":")).name in names:
            found.append(b" ".join(words).decode(errors="replace"))
    return found


def start(workflow: Workflow, *arguments: str) -> subprocess.Popen[str]:
    """A call of Snakemake that runs while the test looks on; its output goes to snakemake.out."""
    with (workflow.folder / "snakemake.out").open("a") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=workflow.folder,
            env=workflow.environment(),
            stdout=out,
            stderr=out,
            text=True,
            start_new_session=True,
        )


def said(workflow: Workflow) -> str:
    """What the calls of `start` have printed."""
    return (workflow.folder / "snakemake.out").read_text()


def jobs(workflow: Workflow, rule: str = "") -> list[dict[str, str]]:
    """The accounting's records of what was submitted from a folder, oldest first: one a job and requeue.

    Of a job that has not ended the accounting doesn't know the rule yet.
    """
    fields = ["JobID", "State", "AllocTRES", "ReqTRES", "NodeList", "Timelimit", "Start", "End", "Partition", "Comment"]
    asked = ["sacct", "-X", "--duplicates", "--parsable2", "--noheader", f"--format={','.join(fields)},WorkDir"]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
    records = []
    for line in found.splitlines():
        *values, folder = line.split("|")
        record = dict(zip(fields, values, strict=True))
        record["Comment"] = record["Comment"].removeprefix("rule_")
        if folder == str(workflow.folder) and record["Comment"].partition("_wildcards_")[0].startswith(rule):
            records.append(record)
    return records


def tres(text: str) -> dict[str, str]:
    """`cpu=8,gres/gpu=1,...` as a dictionary."""
    return dict(part.split("=", 1) for part in text.split(",") if part)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 180, workflow: Workflow | None = None) -> None:
    """Wait; fail with what the workflow has printed so far."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not reached in {seconds} s: {what}\n{said(workflow)[-4000:] if workflow else ''}")
        time.sleep(0.5)
