"""GPUs handed out by file locks: to processes that start together, and after one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest

from shallow_signals.files import InputError
from shallow_signals.gpu_claim import claim_gpus, visible_devices

# Waits for the starting gun, takes devices, holds them, and tells from when to when.
HOLD = """
import os, sys, time
from pathlib import Path
from shallow_signals.gpu_claim import claim_gpus
folder, name, count, seconds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
(folder / f"{name}.ready").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
claim_gpus(count)
begin = time.monotonic()
(folder / f"{name}.part").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
(folder / f"{name}.part").rename(folder / f"{name}.holds")
time.sleep(seconds)
(folder / f"{name}.held").write_text(f"{begin} {time.monotonic()} {os.environ['CUDA_VISIBLE_DEVICES']}")
"""


def hold(
    folder: Path, name: str, count: int, seconds: float, devices: str, allocation: str | None = None
) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": devices, "TMPDIR": str(folder)}
    environment.pop("SLURM_JOB_ID", None)
    if allocation:
        environment["SLURM_JOB_ID"] = allocation
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder), name, str(count), str(seconds)], env=environment)


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"not there: {[p.name for p in paths if not p.exists()]}"
        time.sleep(0.01)


def overlaps(spans: list[tuple[float, float, set[str]]]) -> int:
    """Pairs of holders that had a device in common at the same time."""
    return sum(1 for a, b in combinations(spans, 2) if a[2] & b[2] and a[0] < b[1] and b[0] < a[1])


def test_jobs_that_start_at_the_same_moment_share_no_device(tmp_path: Path) -> None:
    counts = [1, 2, 1, 1, 2, 3, 1, 1]
    processes = [hold(tmp_path, f"job{i}", count, 0.4, "0,1,2,3") for i, count in enumerate(counts)]
    wait_for(*(tmp_path / f"job{i}.ready" for i in range(len(counts))))
    (tmp_path / "go").touch()
    assert [process.wait(timeout=60) for process in processes] == [0] * len(counts)
    spans = []
    for i, count in enumerate(counts):
        begin, end, devices = (tmp_path / f"job{i}.held").read_text().split()
        assert len(set(devices.split(","))) == count
        assert set(devices.split(",")) <= set("0123")
        spans.append((float(begin), float(end), set(devices.split(","))))
    assert overlaps(spans) == 0
    together = [(a, b) for a, b in combinations(spans, 2) if a[0] < b[1] and b[0] < a[1]]
    assert together, "they ran one after the other: nothing was tested"
    assert overlaps([(begin, end, {"0"}) for begin, end, _ in spans])  # control: all on one device would be seen


def test_a_killed_job_gives_its_device_back(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    first = hold(tmp_path, "first", 1, 600, "5")
    wait_for(tmp_path / "first.holds")
    second = hold(tmp_path, "second", 1, 0, "5")
    wait_for(tmp_path / "second.ready")
    time.sleep(1.5)
    assert not (tmp_path / "second.holds").exists()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait(timeout=30) == 0
    assert (tmp_path / "second.holds").read_text() == "5"


def test_a_child_that_outlives_a_killed_job_keeps_its_device(tmp_path: Path) -> None:
    """As torchrun does, for a while, when only the script is killed."""
    (tmp_path / "go").touch()
    keeps = f"""
import pathlib, subprocess, sys, time
from shallow_signals.gpu_claim import claim_gpus, held_locks
claim_gpus(1)
child = subprocess.Popen(["sleep", "60"], pass_fds=held_locks())
pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
pathlib.Path({str(tmp_path / "first.holds")!r}).touch()
time.sleep(600)
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "5", "TMPDIR": str(tmp_path)}
    environment.pop("SLURM_JOB_ID", None)
    first = subprocess.Popen([sys.executable, "-c", keeps], env=environment)
    wait_for(tmp_path / "first.holds")
    first.kill()
    first.wait()
    second = hold(tmp_path, "second", 1, 0, "5")
    wait_for(tmp_path / "second.ready")
    time.sleep(1.5)
    assert not (tmp_path / "second.holds").exists()
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
    assert second.wait(timeout=30) == 0


def test_jobs_of_one_slurm_allocation_share_it_and_no_other(tmp_path: Path) -> None:
    """`profiles/gpu` inside salloc: one job id, several jobs; the next allocation on the node numbers from 0, too."""
    (tmp_path / "go").touch()
    held = [hold(tmp_path, f"job{i}", 1, 600, "0,1", allocation) for i, allocation in enumerate(["7", "7", "8", "8"])]
    try:
        wait_for(*(tmp_path / f"job{i}.holds" for i in range(4)))
        devices = [(tmp_path / f"job{i}.holds").read_text() for i in range(4)]
        assert sorted(devices[:2]) == sorted(devices[2:]) == ["0", "1"]
    finally:
        for process in held:
            process.kill()
            process.wait()


def test_too_few_devices_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(InputError, match="4 GPUs asked for, 2 here"):
        claim_gpus(4)


def test_slurms_own_devices_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert claim_gpus(2) == ["3", "4"]
    assert not list(tmp_path.iterdir())


def test_devices_are_asked_of_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert visible_devices({}) == ["0", "1", "2"]
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "1"}) == ["1"]
    assert visible_devices({"CUDA_VISIBLE_DEVICES": ""}) == []
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert visible_devices({}) == []
