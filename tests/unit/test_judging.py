"""Judging a comparison: the planted truth against the generator's own, a reward model, stored outputs, the files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import checkpoints
from shallow_signals.config.sources import PlantedSource
from shallow_signals.data.instructions import INSTRUCTIONS
from shallow_signals.data.planted import generate
from shallow_signals.evaluation.alpaca_files import COLUMNS, read_annotations, write_annotations, write_outputs
from shallow_signals.evaluation.alpacaeval import win_rate
from shallow_signals.evaluation.judging import judge_outputs
from shallow_signals.evaluation.rewards import model_rewards
from shallow_signals.evaluation.win_rate_checks import improves, is_even, win_rate_checks
from shallow_signals.files import InputError, write_parquet

WORLD = PlantedSource(kind="planted", profile="front", pairs=1, test_pairs=60, seed=5, sharpness=0.8)
TRUTH = {"kind": "planted", "source": WORLD.model_dump(mode="json")}


def write(folder: Path, name: str, texts: list[str]) -> Path:
    path = folder / f"{name}.json"
    write_outputs(path, [{"instruction": f"task {i}", "output": t, "generator": name} for i, t in enumerate(texts)])
    return path


def instructions(folder: Path, n: int, stored: list[str] | None = None) -> Path:
    rows = [
        {"instruction_id": f"i{i}", "prompt": [{"role": "user", "content": f"task {i}"}], "instruction": f"task {i}"}
        | ({"output": stored[i], "generator": "gpt"} if stored else {})
        for i in range(n)
    ]
    path = folder / "instructions.parquet"
    write_parquet(path, pa.Table.from_pylist(rows, schema=INSTRUCTIONS))
    return path


def judged(
    folder: Path,
    judge: dict[str, Any],
    reference: list[str] | None,
    model: list[str],
    stored: list[str] | None = None,
    checkpoint: Path | None = None,
) -> pd.DataFrame:
    prompts = instructions(folder, len(model), stored)
    against = None if reference is None else write(folder, "reference", reference)
    out = folder / "annotations.json"
    judge_outputs(
        judge, checkpoint, prompts, against, [write(folder, "model", model)], [out], name="j", cache=folder / "c.jsonl"
    )
    return read_annotations(out)


def test_the_planted_truth_is_the_worlds_own(tmp_path: Path) -> None:
    """The generator knows both rewards: its margin says who must win."""
    pairs = [pair for pair in generate(WORLD) if pair["split"] == "test"]
    margins = np.array([pair["margin"] for pair in pairs], dtype=float)
    chosen = [pair["chosen"] for pair in pairs]
    frame = judged(tmp_path, TRUTH, [pair["rejected"] for pair in pairs], chosen)
    assert (margins < 0).sum() >= 5  # labels are noisy, so the truth disagrees with some
    assert frame["preference"].tolist() == (1.5 + 0.5 * np.sign(margins)).tolist()
    assert list(frame.columns) == COLUMNS and set(frame["annotator"]) == {"j"}
    assert frame["output_2"].tolist() == chosen


def test_a_reward_model_gives_its_probability(tmp_path: Path) -> None:
    model = checkpoints.reward(tmp_path / "reward", checkpoints.llama3(tmp_path / "base"))
    judge: dict[str, Any] = {"kind": "model", "max_length": 256, "compute": "float32"}
    ours, theirs = ["Mix the flour.", "No", "Yes"], ["Heat the oven.", "Perhaps so", "Yes"]
    frame = judged(tmp_path, judge, theirs, ours, checkpoint=model)
    prompts: Any = [[{"role": "user", "content": f"task {i}"}] for i in range(3)]
    first, second = (model_rewards(model, prompts, side, max_length=256, compute="float32") for side in (theirs, ours))
    assert frame["preference"].tolist() == pytest.approx((1 + 1 / (1 + np.exp(first - second))).tolist(), abs=1e-5)
    assert frame["preference"].iloc[2] == 1.5 and frame["preference"].nunique() == 3


def test_stored_outputs_are_the_reference(tmp_path: Path) -> None:
    good, bad = "The good ship runs quite well.", "The bad ship runs quite badly."
    frame = judged(tmp_path, TRUTH, None, [good, bad, good], stored=[bad, good, good])
    assert frame["preference"].tolist() == [2, 1, 1.5]
    assert set(frame["generator_1"]) == {"gpt"} and frame["output_1"].tolist() == [bad, good, good]
    with pytest.raises(InputError, match=r"row 0 has no stored output to compare with; set `against: base`"):
        judged(tmp_path, TRUTH, None, [good])


def test_outputs_of_other_instructions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 outputs for the reference's 1 instructions"):
        judged(tmp_path, TRUTH, ["a", "b"], ["a"])


def test_annotations_keep_every_digit_and_what_was_not_judged(tmp_path: Path) -> None:
    frame = judged(tmp_path, TRUTH, ["a", "b", "c"], ["d", "e", "f"])
    frame["preference"] = [1.1234567890123456, math.nan, 0.0]
    write_annotations(tmp_path / "a.json", frame)
    again = read_annotations(tmp_path / "a.json")
    pd.testing.assert_frame_equal(again, frame, check_exact=True)
    assert json.loads((tmp_path / "a.json").read_text())[1]["preference"] is None
    (tmp_path / "a.json").write_text('[{"instruction": "x"}]')
    with pytest.raises(InputError, match=r"a\.json: row 0: 'output_1' is missing"):
        read_annotations(tmp_path / "a.json")


def frame_of(preferences: list[float]) -> pd.DataFrame:
    n = len(preferences)
    return pd.DataFrame({"instruction": [f"task {i}" for i in range(n)], "preference": preferences})


@pytest.mark.parametrize(("share", "wanted"), [(0.8, True), (0.5, False), (0.2, False)])
def test_dpo_must_beat_its_reference_beyond_chance(share: float, wanted: bool) -> None:
    wins = [2.0] * round(200 * share) + [1.0] * round(200 * (1 - share))
    assert improves("x", frame_of(wins)).passes is wanted
    assert is_even("x", frame_of(wins)).passes is (share == 0.5)


def test_shuffled_preferences_fail() -> None:
    """A clear win whose preferences are dealt to either side at random is none; 60% of 200 is not enough, either."""
    generator = np.random.default_rng(1)
    sided = np.where(generator.random(200) < 0.5, 2.0, 1.0)
    assert not improves("x", frame_of(sided.tolist())).passes and is_even("x", frame_of(sided.tolist())).passes
    assert not improves("x", frame_of([2.0] * 120 + [1.0] * 80)).passes


def test_ties_decide_nothing() -> None:
    tied = frame_of([1.5] * 150 + [2.0] * 40 + [1.0] * 10)
    found = improves("x", tied)
    assert (found.n, found.measured, found.passes) == (50, 0.8, True)
    assert win_rate(tied.assign(output_1="", output_2="")).win_rate.value == pytest.approx(57.5)
    nothing = frame_of([1.5, math.nan])
    assert not improves("x", nothing).passes and is_even("x", nothing).passes


def test_checks_read_the_comparisons_files(tmp_path: Path) -> None:
    paths = {}
    for member, preferences in (("full", [2.0] * 45 + [1.0] * 5), ("base", [2.0] * 24 + [1.0] * 26)):
        columns = dict.fromkeys(COLUMNS, "x") | {"preference": preferences}
        write_annotations(tmp_path / f"{member}.json", pd.DataFrame(columns))
        paths[member] = str(tmp_path / f"{member}.json")
    found = win_rate_checks([{"comparison": "one", "annotations": paths}])
    assert [(check.check, check.truncation, check.measured, check.passes) for check in found] == [
        ("dpo", "full", 0.9, True),
        ("even", "base", 0.48, True),
    ]
    swapped = win_rate_checks([{"comparison": "one", "annotations": {"full": paths["base"], "base": paths["full"]}}])
    assert [check.passes for check in swapped] == [False, False]
