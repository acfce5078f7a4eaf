"""OpenRLHF beside the main environment: where it stands, and how tests ask it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"


def installed() -> Path:
    """The folder that `make openrlhf-parser` fills; its absence is a failure in CI and a skip elsewhere."""
    folder = Path(os.environ.get("SHALLOW_SIGNALS_OPENRLHF", ROOT / ".openrlhf"))
    if not (folder / "openrlhf").is_dir():
        message = f"no OpenRLHF in {folder} (make openrlhf-parser)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


def search_path() -> str:
    """Of a process that imports OpenRLHF: it comes last, so that the main environment's versions stand."""
    return os.pathsep.join(map(str, (ROOT / "workflow", TESTS / "stubs", installed())))


def ask(module: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """OpenRLHF's answer (see `openrlhf_side`); a refusal by its parser is a `ValueError` with what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": search_path(),
        "DS_ACCELERATOR": "cpu",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    ended = subprocess.run(
        [sys.executable, str(TESTS / "openrlhf_side.py"), module, str(folder / "request.json")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if ended.returncode:
        raise ValueError(ended.stderr[-3000:])
    found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found
