"""What runs again, and what does not, after an edit."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from workflow_copy import Workflow

CONFIG = ("--configfile", "micro.yaml")


@pytest.fixture
def copy(finished: Workflow, tmp_path: Path) -> Workflow:
    """The finished run, free to edit; time stamps kept, as `cp -a` keeps them."""
    shutil.copytree(finished.folder, tmp_path / "copy", copy_function=shutil.copy2)
    return Workflow(tmp_path / "copy")


def edit(path: Path, text: str) -> None:
    """Append to a file, with a time stamp that is surely newer."""
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")
    later = time.time() + 5
    os.utime(path, (later, later))


def test_second_call_has_nothing_to_do(copy: Workflow) -> None:
    assert copy.planned(*CONFIG, "--", "all") == {}


def test_touching_code_and_data_runs_nothing(copy: Workflow) -> None:
    later = time.time() + 5
    for path in copy.folder.glob("workflow/**/*.py"):
        os.utime(path, (later, later))
    os.utime(copy.folder / "results/micro/data/one/pairs.parquet", (later, later))
    assert copy.planned(*CONFIG, "--", "all") == {}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("paper/render.py", {"make_table", "make_table3", "gather_tradeoff"}),
        ("signal/probe.py", {"run_probe"}),
        ("data/hub.py", {"ingest_dataset", "prepare_instructions"}),
        ("evaluation/judging.py", {"judge_outputs_one"}),
        ("paper/tradeoff_figure.py", {"draw_tradeoff"}),
        ("training/dpo.py", {"train_dpo_one", "train_dpo_again"}),
    ],
)
def test_edited_module_runs_exactly_the_steps_that_use_it(copy: Workflow, module: str, expected: set[str]) -> None:
    path = f"workflow/shallow_signals/{module}"
    edit(copy.folder / path, "\n# an edit\n")
    assert copy.triggered(path, *CONFIG, "--", "all") == expected
    if "make_table" in expected:  # nothing follows a table, but for the figure made with one
        assert copy.planned(*CONFIG, "--", "all").keys() == {*expected, "draw_tradeoff"}


def test_edited_interval_trains_samples_and_scores_nothing_again(copy: Workflow) -> None:
    path = "workflow/shallow_signals/evaluation/statistics.py"
    edit(copy.folder / path, "\n# an edit\n")
    triggered = copy.triggered(path, *CONFIG, "--", "all")
    assert "make_table3" in triggered
    costly = ("score_", "train_", "decode", "generate_", "read_texts")
    assert not [rule for rule in triggered if rule.startswith(costly)]


def test_edited_data_set_runs_its_branch_only(copy: Workflow) -> None:
    path = copy.folder / "micro.yaml"
    path.write_text(path.read_text().replace("profile: back, pairs: 64", "profile: back, pairs: 70"))
    planned = copy.planned(*CONFIG, "--", "all")
    assert planned["ingest_dataset"] == 1
    assert "train_reward_models_two" in planned
    assert "train_reward_models_one" not in planned
    assert "run_probe" not in planned


def test_deleted_figure_is_only_drawn_again(copy: Workflow) -> None:
    drawn = {"probe/one.png": "draw_probe", "figures/figure2.png": "draw_implicit_rewards"}
    drawn |= {"figures/figure1.pdf": "draw_examples", "figures/position.png": "draw_position"}
    drawn |= {"figures/figure3.png": "draw_kl", "figures/figure4.pdf": "draw_tradeoff"}
    for number, path in enumerate(drawn, start=1):
        (copy.folder / "results/micro" / path).unlink()
        assert copy.planned(*CONFIG, "--", "all") == dict.fromkeys(list(drawn.values())[:number], 1)
