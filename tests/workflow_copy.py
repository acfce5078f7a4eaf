"""A copy of the workflow in a scratch folder, and Snakemake on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MICRO = ROOT / "tests" / "micro.yaml"


@dataclass(frozen=True)
class Workflow:
    """A scratch copy of the workflow that tests may edit."""

    folder: Path

    def command(self, *arguments: str) -> list[str]:
        """The command line of a call."""
        return [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]

    def environment(self) -> dict[str, str]:
        """Offline: whatever reaches for the network fails at once."""
        return {
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
            "XDG_CACHE_HOME": str(self.folder / ".cache"),
            "HTTPS_PROXY": "http://127.0.0.1:9",
        }

    def run(self, *arguments: str, check: bool = True, timeout: int = 1800) -> subprocess.CompletedProcess[str]:
        """Call snakemake in the copy; its output comes back as text."""
        result = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )
        if check and result.returncode:
            pytest.fail(f"snakemake {' '.join(arguments)} failed:\n{result.stdout[-6000:]}")
        return result

    def planned(self, *arguments: str) -> dict[str, int]:
        """Rules that a dry-run would run, with their numbers of jobs."""
        text = self.run("--dry-run", *arguments).stdout
        if "Nothing to be done" in text:
            return {}
        lines = text.split("Job stats:")[1].splitlines()
        counts = {}
        for line in lines[3:]:
            if not line.strip():
                break
            name, number = line.split()
            counts[name] = int(number)
        counts.pop("total")
        counts.pop("all", None)
        return counts

    def triggered(self, path: str, *arguments: str) -> set[str]:
        """Rules that a dry-run would run because the input at `path` has changed, not because an earlier job ran."""
        found, rule = set(), ""
        for line in self.run("--dry-run", *arguments).stdout.splitlines():
            if match := re.match(r"(?:local)?rule (\w+):", line):
                rule = match[1]
            elif line.lstrip().startswith("reason: ") and path in line:
                found.add(rule)
        return found


def copy_workflow(folder: Path) -> Workflow:
    """Copy what a run needs: Snakefile, workflow, configurations, profiles."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("workflow", "config", "profiles", "envs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(MICRO, folder / "micro.yaml")
    shutil.copy(ROOT / "slurm", folder / "slurm", follow_symlinks=False)
    return Workflow(folder)
