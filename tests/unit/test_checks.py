"""The checks of the planted world: a sound judge passes, an impossible, a blind and a biased one fail."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from shallow_signals.config.sources import PlantedSource
from shallow_signals.config.statistics import Statistics
from shallow_signals.config.truncation import parse
from shallow_signals.data import planted
from shallow_signals.data.planted_truth import best_accuracy
from shallow_signals.evaluation import checks
from shallow_signals.evaluation.checks import Check, CheckFailed, Experiment, PlantedExperiment

SETTINGS = Statistics(resamples=200)
SIDES = ("chosen", "rejected")
FRONT = PlantedSource(profile="front", pairs=1, test_pairs=4000, seed=5)


def half(text: str) -> str:
    words = text.split(" ")
    return " ".join(words[: len(words) // 2])


@cache
def truth(test: str) -> tuple[np.ndarray, np.ndarray]:
    """The true reward of the chosen and the rejected responses of generated test pairs, as a test sees them."""
    cut = half if test == "kept" else str
    pairs = [pair for pair in planted.generate(FRONT) if pair.get("split") == "test"]
    chosen, rejected = ([planted.true_reward(cut(pair[side]), FRONT) for pair in pairs] for side in SIDES)
    return np.array(chosen), np.array(rejected)


def table(tests: tuple[str, ...] = ("full",), flip: float = 0.0) -> pa.Table:
    """Scores of the true reward as a judge; a share `flip` of its answers is turned round."""
    random = np.random.default_rng(1)
    parts = []
    for test in tests:
        chosen, rejected = truth(test)
        turned = random.random(chosen.size) < flip
        ids = [str(i) for i in range(chosen.size)]
        noise = random.normal(0, 1e-9, chosen.size)  # no ties
        columns = {"pair_id": ids, "cluster": ids, "subset": [""] * len(ids), "test": [test] * len(ids)}
        columns["chosen"] = np.where(turned, rejected, chosen) + noise
        columns["rejected"] = np.where(turned, chosen, rejected)
        columns["chosen_length"] = columns["rejected_length"] = np.ones(len(ids), int)
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


BOTH = ("full", "kept")


def run(full: pa.Table, head: pa.Table) -> list[Check]:
    experiment = PlantedExperiment("front", {"full": {1: full}, "head50": {1: head}}, FRONT)
    return checks.planted_checks([experiment], SETTINGS)


def test_the_true_reward_passes_every_check() -> None:
    found = run(table(), table(BOTH))
    assert {check.check for check in found} == {"bound", "gap"}
    checks.require(found)
    bound = next(c for c in found if c.check == "bound" and c.truncation == "full")
    assert bound.truth == best_accuracy(FRONT, parse("full"))


def test_a_judge_that_knows_the_labels_is_too_good() -> None:
    """Leaked labels: right on every pair, which no reader of the texts can be."""
    leaked = table()
    column = pa.array(np.ones(leaked.num_rows))
    cheat = leaked.set_column(4, "chosen", column).set_column(5, "rejected", pa.array(np.zeros(leaked.num_rows)))
    with pytest.raises(CheckFailed, match="bound front/full"):
        checks.require(run(cheat, table(BOTH)))


def test_a_judge_that_loses_too_much_at_the_cut_fails_the_gap() -> None:
    with pytest.raises(CheckFailed, match="gap front/head50"):
        checks.require(run(table(), table(BOTH, flip=0.2)))


def shuffled(flip: float) -> list[Check]:
    tables = {f"shuffled{i}": {1: table(flip=flip + 0.01 * (i - 3))} for i in range(1, 6)}
    experiment = Experiment("front", {"full": {1: table()}, **tables})
    return checks.shuffled_checks([experiment], SETTINGS)


def test_shuffled_labels_must_be_right_half_the_time() -> None:
    """On any data; the world's bounds and gaps are asked of planted data alone."""
    checks.require(shuffled(0.5))
    assert checks.planted_checks([Experiment("real", {"full": {1: table()}})], SETTINGS) == []
    with pytest.raises(CheckFailed, match="shuffled front/5 shuffles"):
        checks.require(shuffled(0.3))


def curves(path: Path, accuracy: float, shuffles: int = 5) -> Path:
    """The controls' rows of a table of curves."""
    rows = [("shuffled", accuracy, accuracy - 0.05, accuracy + 0.05, shuffles), ("flipped", 0.51, 0.45, 0.57, 1)]
    frame = pd.DataFrame(rows, columns=["curve", "accuracy", "low", "high", "seeds"])
    frame.assign(n=300).to_csv(path, index=False)
    return path


def test_policies_of_shuffled_labels_must_be_right_half_the_time(tmp_path: Path) -> None:
    good = checks.shuffled_policy_checks({"one": curves(tmp_path / "good.csv", 0.52)})
    assert [check.check for check in good] == ["shuffled", "flipped"]
    checks.require(good)
    with pytest.raises(CheckFailed, match="shuffled implicit reward one/5 shuffles"):
        checks.require(checks.shuffled_policy_checks({"one": curves(tmp_path / "bad.csv", 0.58)}))
    few = checks.shuffled_policy_checks({"one": curves(tmp_path / "few.csv", 0.58, shuffles=4)})
    assert [check.check for check in few] == ["flipped"]


def test_a_run_with_nothing_to_check_fails() -> None:
    with pytest.raises(CheckFailed, match="nothing to check"):
        checks.require([])
