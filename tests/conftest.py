"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workflow_copy import Workflow, copy_workflow

ROOT = Path(__file__).resolve().parent.parent

# Tests never reach for a hub: what they load lies on disk.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real preference and evaluation data; its absence is a failure in CI and a skip elsewhere."""
    folder = Path(os.environ.get("SHALLOW_SIGNALS_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        message = f"no real data at {folder} (set SHALLOW_SIGNALS_DATA)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture
def workflow(tmp_path: Path) -> Workflow:
    """A fresh copy of the workflow for one test."""
    return copy_workflow(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A copy in which the micro study has run to the end; tests that edit it copy it first."""
    copy = copy_workflow(tmp_path_factory.mktemp("micro"))
    copy.run("--configfile", "micro.yaml", "--quiet", "rules", "--", "all")
    return copy
