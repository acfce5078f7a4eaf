"""The GPU benchmark runs, at toy size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("line", ["reward", "dpo"])
def test_both_sides_are_timed(line: str) -> None:
    ended = subprocess.run(
        [sys.executable, "benchmarks/gpu_training.py", "--toy", "--line", line, "--steps", "1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "workflow"), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    rows = [row.split(" | ") for row in ended.stdout.splitlines() if row.startswith(f"| {line}")]
    assert [row[1] for row in rows] == ["stock", "here"]
    for row in rows:
        assert float(row[2]) > 0
        assert row[4:6] == ["-", "-"]  # neither utilisation nor GPU memory is made up on a CPU
    assert "no figure means anything" in ended.stdout
