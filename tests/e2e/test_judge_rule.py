"""The rule that asks a language model: with a key, without one, and again after its answers were deleted."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from judge_server import JudgeServer
from shallow_signals.evaluation.alpaca_files import read_annotations, read_outputs
from workflow_copy import Workflow

KEY = "sk-test-0ddba11-do-not-store"
TABLE = ("--configfile", "micro.yaml", "--quiet", "rules", "--", "table3")
MEMBERS = ("base", "full", "head50", "tail50")


def length(text: str) -> float:
    """The server's taste: longer ones, by characters."""
    return len(text) / 20


@pytest.fixture
def copy(finished: Workflow, tmp_path: Path) -> Workflow:
    shutil.copytree(finished.folder, tmp_path / "copy", copy_function=shutil.copy2)
    return Workflow(tmp_path / "copy")


def ask_at(copy: Workflow, url: str) -> None:
    """Let the micro study's judge be a service."""
    path = copy.folder / "micro.yaml"
    study = yaml.safe_load(path.read_text(encoding="utf-8"))
    prices = {"input_price": 2.5, "output_price": 10}
    study["judges"]["service"] = {"kind": "api", "model": "gpt-4o-2024-08-06", "base_url": url, **prices}
    study["alpacaeval"]["one"]["judge"] = "service"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")


def test_the_api_judge_as_a_rule(copy: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    folder = copy.folder / "results/micro/alpacaeval/one"
    with JudgeServer(quality=length) as server:
        ask_at(copy, server.url)
        planned = copy.planned(*TABLE)
        assert planned["judge_outputs_one"] == 1 and not any(name.startswith("generate") for name in planned)
        printed = copy.run(*TABLE).stdout
        assert "to ask: about" in printed and "gpt-4o-2024-08-06" in printed  # the estimate reaches the terminal
        questions = len(server.asked)
        assert 8 < questions <= 4 * 8
        reference = [record["output"] for record in read_outputs(folder / "reference/model_outputs.json")]
        for member in MEMBERS:
            frame = read_annotations(folder / member / "annotations.json")
            outputs = [record["output"] for record in read_outputs(folder / member / "model_outputs.json")]
            truth = [1 + 1 / (1 + math.exp(length(a) - length(b))) for a, b in zip(reference, outputs, strict=True)]
            assert frame["preference"].tolist() == pytest.approx(truth, abs=1e-9)
        table = pd.read_csv(copy.folder / "results/micro/tables/table3.csv")
        rate = table[(table["row"] == "Win rate") & (table["name"] == "tail50")]["value"].iloc[0]
        assert rate == pytest.approx(100 * (sum(truth) / 8 - 1), abs=1e-5)
        assert (
            "judged by gpt-4o-2024-08-06 against the base model"
            in (copy.folder / "results/micro/tables/table3.md").read_text()
        )

        shutil.rmtree(folder / "full")  # its outputs, too: made again, they are the same and were paid for
        copy.run(*TABLE)
        assert len(server.asked) == questions
    held = [path for path in copy.folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert held == []
