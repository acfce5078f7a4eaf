"""What goes wrong on a cluster, made to go wrong on one: the real profile, the workflow's own helpers, tiny rules."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from cluster import node_states, output

from conftest import QUICK, Call, jobs, said, start, tres, wait_for
from shallow_signals.slurm_queue import queued_jobs
from workflow_copy import Workflow

DRILL = ("--snakefile", "drills.smk", *QUICK)


@dataclass(frozen=True)
class Troubled:
    """A call whose jobs fail, time out, are cancelled and lose their node, while another goes through."""

    workflow: Workflow
    code: int
    after_drain: str  # the node of a job that was submitted once the first node was drained


@pytest.fixture(scope="module")
def troubled(miniature: Call, on_slurm: Callable[[str], Workflow]) -> Troubled:
    workflow = on_slurm("drills")
    rules = ("fine", "broken", "too_slow", "cancelled", "on_bad_node")
    process = start(workflow, *DRILL, "--", *rules)
    try:
        wait_for(lambda: bool(running(workflow, "cancelled")), "the job to cancel runs", workflow=workflow)
        subprocess.run(["scancel", *running(workflow, "cancelled")], check=True)
        wait_for((workflow.folder / "nodes.txt").exists, "the job to move has begun", workflow=workflow)

        # A drained node ends what it has and takes nothing new ...
        (moved,) = running(workflow, "on_bad_node")
        node = output("squeue", "--noheader", f"--jobs={moved}", "--format=%N")
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=drain", "reason=drill"], check=True)
        other = on_slurm("after")
        other.run(*DRILL, "--", "after_drain")
        assert running(workflow, "on_bad_node") == [moved]
        # ... one that is down has lost what it had.
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=drill"], check=True)
        wait_for(
            lambda: len((workflow.folder / "nodes.txt").read_text().splitlines()) == 2,
            "the job runs again on another node",
            workflow=workflow,
        )
        (workflow.folder / "go").touch()
        code = process.wait(timeout=300)
    finally:
        for name in ("h100-1", "h100-2"):
            subprocess.run(["scontrol", "update", f"nodename={name}", "state=resume"], capture_output=True)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    wait_for(lambda: not {"down", "drained", "draining"} & set(node_states()), "all nodes are back")
    return Troubled(workflow, code, (other.folder / "after_drain.txt").read_text())


def running(workflow: Workflow, rule: str) -> list[str]:
    """Ids of a rule's jobs that run now."""
    return [job.job for job in queued_jobs(workflow.folder) if job.rule == rule and job.state == "RUNNING"]


def test_a_failing_rule_is_named_with_its_log(troubled: Troubled) -> None:
    text = said(troubled.workflow)
    assert troubled.code != 0
    assert "Error in rule broken" in text
    assert "logs/drills/broken.log" in text
    assert "the reason why" in text  # the log itself is shown
    kept = list((troubled.workflow.folder / "logs/slurm/rule_broken").glob("*.log"))
    assert len(kept) == 3  # one an attempt
    assert str(kept[0]) in text
    assert [job["State"] for job in jobs(troubled.workflow, "broken")] == ["FAILED"] * 3
    assert not (troubled.workflow.folder / "broken.txt").exists()


def test_the_others_go_on(troubled: Troubled) -> None:
    assert (troubled.workflow.folder / "fine.txt").exists()
    assert [job["State"] for job in jobs(troubled.workflow, "fine")] == ["COMPLETED"]
    assert not list((troubled.workflow.folder / "logs/slurm/rule_fine").glob("*.log"))


def test_a_time_out_is_tried_again_with_more(troubled: Troubled) -> None:
    first, second = jobs(troubled.workflow, "too_slow")
    assert (first["State"], second["State"]) == ("TIMEOUT", "COMPLETED")
    assert (first["Timelimit"], second["Timelimit"]) == ("00:01:00", "00:02:00")
    assert (tres(first["AllocTRES"])["mem"], tres(second["AllocTRES"])["mem"]) == ("600M", "1200M")
    assert (troubled.workflow.folder / "too_slow.txt").read_text() == "2 1200\n"


def test_a_cancelled_job_does_not_hang_the_run(troubled: Troubled) -> None:
    first, second = jobs(troubled.workflow, "cancelled")
    assert first["State"].startswith("CANCELLED")
    assert second["State"] == "COMPLETED"
    assert "Error in rule cancelled" in said(troubled.workflow)


def test_a_drained_node_takes_no_new_job_and_a_lost_one_s_job_moves(troubled: Troubled) -> None:
    visits = [line.split() for line in (troubled.workflow.folder / "nodes.txt").read_text().splitlines()]
    (first, devices), (second, _) = visits
    assert {first, second} == {"h100-1", "h100-2"}
    assert devices == "0,1,2,3,4,5,6,7"
    assert troubled.after_drain.strip() == second
    states = [job["State"] for job in jobs(troubled.workflow, "on_bad_node")]
    assert states[-1] == "COMPLETED"
    assert len(states) == 2 and states[0] in ("NODE_FAIL", "REQUEUED")
    assert (troubled.workflow.folder / "on_bad_node.txt").exists()
    assert "Error in rule on_bad_node" not in said(troubled.workflow)


def test_a_killed_snakemake_is_resumed_without_two_jobs_at_one_output(on_slurm: Callable[[str], Workflow]) -> None:
    workflow = on_slurm("killed")
    call = (*DRILL, "--", "journal")
    process = start(workflow, *call)
    wait_for((workflow.folder / "journal.log").exists, "the job has begun", workflow=workflow)
    alive = resume(workflow)
    assert alive.returncode != 0 and "still runs" in alive.stderr  # a living call is left alone
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (orphan,) = queued_jobs(workflow.folder)
    assert orphan.state == "RUNNING" and orphan.rule == "journal" and orphan.run in said(workflow)

    # The lock, and behind it the queue, keep a second job away.
    assert "lock" in workflow.run(*call, check=False).stdout.lower()
    workflow.run(*DRILL, "--unlock")
    refused = workflow.run(*call, check=False)
    assert refused.returncode != 0 and orphan.job in refused.stdout and "make resume" in refused.stdout
    assert queued_jobs(workflow.folder) == [orphan]

    assert orphan.job in resume(workflow).stdout and not queued_jobs(workflow.folder)
    (workflow.folder / "finish").touch()
    workflow.run(*DRILL, "--unlock")
    workflow.run(*DRILL, "--rerun-incomplete", "--", "journal")
    first, second = jobs(workflow, "journal")
    assert first["State"].startswith("CANCELLED") and second["State"] == "COMPLETED"
    assert first["End"] <= second["Start"]
    entries = [line.split()[:2] for line in (workflow.folder / "journal.log").read_text().splitlines()]
    assert entries == [["begin", first["JobID"]], ["begin", second["JobID"]], ["end", second["JobID"]]]
    assert (workflow.folder / "journal.txt").exists()


def resume(workflow: Workflow) -> subprocess.CompletedProcess[str]:
    """The first step of `make resume`."""
    return subprocess.run(
        [sys.executable, "-m", "shallow_signals.slurm_queue"],
        cwd=workflow.folder, env=workflow.environment(), text=True, capture_output=True, timeout=120,
    )  # fmt: skip


def test_two_nodes(on_slurm: Callable[[str], Workflow]) -> None:
    """The form of README.md: every launcher sees all GPUs of its node."""
    workflow = on_slurm("nodes")
    more = ("nodes=2", "gpu=16", "tasks=2", "tasks_per_gpu=0", "mpi=srun")
    workflow.run(*DRILL, "--set-resources", *(f"two_nodes:{setting}" for setting in more), "--", "two_nodes")
    (job,) = jobs(workflow, "two_nodes")
    granted = tres(job["AllocTRES"])
    assert (granted["node"], granted["gres/gpu"], granted["gres/gpu:h100"]) == ("2", "16", "16")
    lines = sorted((workflow.folder / "two_nodes.txt").read_text().splitlines())
    assert lines == [f"{i} h100-{i + 1} 0,1,2,3,4,5,6,7" for i in range(2)]
