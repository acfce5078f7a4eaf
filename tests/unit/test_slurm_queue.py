"""Whether a folder's lock is a leftover: a Snakemake that runs there, or its jobs in the queue, say that it is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shallow_signals.files import InputError
from shallow_signals.slurm_queue import refuse_busy


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command of that name, to be written, in front of all others."""
    command = tmp_path / "bin" / "squeue"
    command.parent.mkdir()
    command.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    return command


def test_jobs_of_the_folder_in_the_queue_are_no_leftover(squeue: Path, tmp_path: Path) -> None:
    line = f"17|2f1c|RUNNING|{tmp_path}|rule_train_dpo_wildcards_skywork"
    squeue.write_text(f"#!/bin/sh\necho '{line}'\n")
    with pytest.raises(InputError, match=r"17 \(train_dpo skywork, RUNNING.*make resume"):
        refuse_busy(tmp_path)
    refuse_busy(tmp_path / "bin")  # another folder's jobs


def test_a_queue_that_does_not_answer_is_none(squeue: Path, tmp_path: Path) -> None:
    squeue.write_text("#!/bin/sh\necho 'squeue: fatal: no configuration' >&2\nexit 1\n")
    refuse_busy(tmp_path)


def test_a_snakemake_that_runs_there_is_no_leftover(tmp_path: Path) -> None:
    script = tmp_path / "snakemake"
    script.write_text("import time\nprint(flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen([sys.executable, script], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            with pytest.raises(InputError, match=f"process {process.pid}"):
                refuse_busy(tmp_path)
        finally:
            process.kill()
    refuse_busy(tmp_path)
