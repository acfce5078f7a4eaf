"""A copy of the workflow in a scratch folder, and Snakemake on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MICRO = Path(__file__).parent / "micro.yaml"


@dataclass(frozen=True)
class Workflow:
    """A scratch copy of the workflow that tests may edit."""

    folder: Path

    def run(self, *arguments: str, check: bool = True, timeout: int = 400) -> subprocess.CompletedProcess[str]:
        """Call snakemake in the copy; its output comes back as text."""
        environment = {
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
            "XDG_CACHE_HOME": str(self.folder / ".cache"),
            "HTTPS_PROXY": "http://127.0.0.1:9",  # whatever reaches for the network fails at once
        }
        result = subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
            cwd=self.folder,
            env=environment,
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


def copy_workflow(folder: Path) -> Workflow:
    """Copy what a run needs: Snakefile, workflow, configurations, profiles."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("workflow", "config", "profiles", "envs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(MICRO, folder / "micro.yaml")
    return Workflow(folder)


@pytest.fixture
def workflow(tmp_path: Path) -> Workflow:
    """A fresh copy for one test."""
    return copy_workflow(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """One copy in which the micro study has run to the end; tests that edit it copy it first."""
    copy = copy_workflow(tmp_path_factory.mktemp("micro"))
    copy.run("--configfile", "micro.yaml", "--quiet", "rules", "--", "all")
    return copy
