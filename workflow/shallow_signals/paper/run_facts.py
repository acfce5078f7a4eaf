"""What a run took: machine, versions, commit, and seconds and memory by rule."""

from __future__ import annotations

import csv
import os
import platform
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shallow_signals.gpu_claim import visible_devices
from shallow_signals.provenance import commit, versions


def run_facts(run: str, params: dict[str, Any], benchmarks: Path) -> dict[str, Any]:
    """Facts for the results page of `run`; `benchmarks` is the folder of the rules' timings.

    `rules` maps each rule to its jobs, seconds (summed over jobs) and peak memory in MB (of one job). Seconds are those
    of the machines that ran the jobs; several may have run side by side.
    """
    return {
        "run": run,
        "params": params,
        **commit(),
        "versions": versions(),
        "python": platform.python_version(),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "accelerator": _accelerator()},
        "rules": _by_rule(sorted(benchmarks.rglob("*.tsv")), benchmarks),
    }


def _by_rule(files: Iterable[Path], root: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"jobs": 0, "seconds": 0.0, "peak_mb": 0.0})
    for file in files:
        with file.open(encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
        rule = found[file.relative_to(root).parts[0].removesuffix(".tsv")]
        rule["jobs"] += 1
        rule["seconds"] = round(rule["seconds"] + sum(float(row["s"]) for row in rows), 1)
        rule["peak_mb"] = max([rule["peak_mb"], *(_number(row["max_rss"]) for row in rows)])
    return dict(sorted(found.items()))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0  # a job too short to be measured


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _accelerator() -> str | None:
    if not visible_devices(os.environ):
        return None  # torch would say the same, seconds later
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
