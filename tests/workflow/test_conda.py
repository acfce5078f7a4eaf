"""Which environment a job gets with `--sdm conda`; a stand-in for conda answers what a dry-run asks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workflow_copy import Workflow

CONDA = """#!/usr/bin/env bash
case "$*" in
  *channel_priority*) echo '{"get": {"channel_priority": "strict"}}' ;;
  *info*) echo '{"conda_version": "24.7.1", "platform": "linux-64", "conda_prefix": "/nowhere"}' ;;
  *) echo "conda 24.7.1" ;;
esac
"""


@pytest.mark.parametrize(
    ("target", "expected"),
    [("models/dpo/skywork/full/seed42", {"core", "openrlhf"}), ("models/reward/skywork/full/seed42", {"core"})],
)
def test_openrlhf_trains_in_its_own_environment(
    target: str, expected: set[str], workflow: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conda = tmp_path / "bin" / "conda"
    conda.parent.mkdir()
    conda.write_text(CONDA, encoding="utf-8")
    conda.chmod(0o755)
    monkeypatch.setenv("PATH", f"{conda.parent}{os.pathsep}{os.environ['PATH']}")
    printed = workflow.run("--dry-run", "--sdm", "conda", "--", f"results/paper/{target}").stdout
    found = {line.split("envs/")[1].split(".yaml")[0] for line in printed.splitlines() if "Conda environment" in line}
    assert found == expected


def test_openrlhf_needs_no_reference_pass(workflow: Workflow) -> None:
    """It holds the reference model itself; the TRL variant reads it off one pass over whole responses."""
    target = "results/paper/models/dpo/skywork/full/seed42"
    assert "score_base_logprobs" not in workflow.planned("--", target)
    (workflow.folder / "trl.yaml").write_text("dpo: {skywork: {recipe: trl_llama}}\n", encoding="utf-8")
    assert workflow.planned("--configfile", "trl.yaml", "--", target)["score_base_logprobs"] == 1
