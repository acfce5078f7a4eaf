"""The small study in miniature: SmolLM2-135M-Instruct out of its package, real pairs, a rebuilt RewardBench."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from workflow_copy import ROOT, Workflow, copy_workflow


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Workflow:
    copy = copy_workflow(tmp_path_factory.mktemp("small"))
    overlay = (ROOT / "tests/e2e/small_mini.yaml").read_text()
    (copy.folder / "mini.yaml").write_text(overlay)
    copy.run(
        "--configfile", "config/small.yaml", "mini.yaml", "--config", f"data_root={shared_data}", "--quiet", "rules",
        "--", "all",
    )  # fmt: skip
    return copy


def test_real_reward_models_reach_table_1(small: Workflow) -> None:
    table = pd.read_csv(small.folder / "results/mini/tables/table1.csv")
    assert table["value"].between(0, 1).any()
    text = (small.folder / "results/mini/tables/table1.md").read_text()
    assert "HH harmless" in text
    assert "partial" in text  # three official subsets can't be had


def test_real_training_is_recorded(small: Workflow) -> None:
    record = json.loads((small.folder / "results/mini/models/reward/hh_harmless/full/seed1/training.json").read_text())
    assert record["pairs"] == 24
    assert record["steps"] == 3
    assert 0.3 < record["first_loss"] < 1.5


def test_pairs50_trains_on_the_tokens_of_head50(small: Workflow) -> None:
    manifest = json.loads(
        (small.folder / "results/mini/data/hh_harmless/shards/smollm2/pairs50/manifest.json").read_text()
    )
    train = manifest["splits"]["train"]
    assert 0 < train["written"] < 24
    assert train["kept_tokens"] == train["full_tokens"] <= train["budget_tokens"]


def test_every_row_is_accounted_for(small: Workflow) -> None:
    manifest = json.loads((small.folder / "results/mini/data/hh_harmless/manifest.json").read_text())
    assert manifest["rows"]["read"] == 2312
    parts = [manifest[name] for name in ("pairs", "quarantined", "filtered", "left_out_by_subset")]
    total = sum(sum(part.values()) if isinstance(part, dict) else part for part in parts)
    assert total == manifest["candidates"] == 2312


def test_probe_of_real_arguments_is_drawn(small: Workflow) -> None:
    folder = small.folder / "results/mini/probe"
    assert (folder / "arguments.png").is_file()
    frame = pd.read_csv(folder / "arguments.csv")
    full = frame[(frame["train_side"] == "full") & (frame["test"] == "full")]["accuracy"].iloc[0]
    assert full > 0.55


def test_wrong_data_root_is_one_clear_line(tmp_path: Path) -> None:
    copy = copy_workflow(tmp_path)
    (tmp_path / "empty").mkdir()
    target = "results/small/data/arguments/pairs.parquet"
    result = copy.run(
        "--configfile", "config/small.yaml", "--config", f"data_root={tmp_path / 'empty'}", "--", target, check=False
    )
    assert result.returncode != 0
    line = next(line for line in result.stdout.splitlines() if line.startswith("ingest_dataset arguments:"))
    assert "human_written_arguments.jsonl.gz" in line
