"""Curves of implicit rewards on arrays whose signal is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from shallow_signals.config.statistics import Statistics
from shallow_signals.config.study import ImplicitReward
from shallow_signals.signal.curves import COLUMNS, Readings, accuracy_curves
from shallow_signals.signal.implicit import LogRatios, PairRatios

SETTINGS = Statistics(resamples=200)
SPEC = ImplicitReward(dataset="d", policy="p", ratios=[25, 50, 100], lengths=[5, 10, 999])
TOKENS = 40


def readings(first: int, last: int, seeds: int = 1) -> Readings:
    """Pairs of equally long responses whose chosen one is ahead on tokens first ... last - 1 only, in noise."""
    random = np.random.default_rng(0)

    def one(lift: float) -> LogRatios:
        values = random.normal(0, 0.3, TOKENS)
        values[first:last] += lift
        at = np.arange(1, TOKENS + 1, dtype=np.int32)
        return LogRatios(values.astype(np.float32), at, np.zeros(TOKENS, np.float32))

    runs = [[PairRatios(str(i), one(0.3), one(0.0)) for i in range(300)] for _ in range(seeds)]
    return Readings(runs, [str(i) for i in range(300)])


def frame(found: Readings) -> pd.DataFrame:
    return pd.DataFrame(accuracy_curves(found, SPEC, SETTINGS), columns=COLUMNS)


def at(table: pd.DataFrame, curve: str, x: int, axis: str = "ratio") -> pd.Series:
    return table[(table["axis"] == axis) & (table["curve"] == curve) & (table["x"] == x)].iloc[0]


def test_an_early_signal_is_early_and_a_late_one_late() -> None:
    early, late = frame(readings(0, 10)), frame(readings(30, 40))
    assert at(early, "head", 25)["accuracy"] > 0.9 > 0.6 > at(early, "tail", 50)["accuracy"]
    assert at(late, "tail", 25)["accuracy"] > 0.9 > 0.6 > at(late, "head", 50)["accuracy"]
    assert at(early, "tail", 50)["to_head_high"] < 0 < at(late, "tail", 50)["to_head_low"]


def test_an_even_signal_is_neither() -> None:
    even = frame(readings(0, 40))
    gap = at(even, "tail", 50)
    assert gap["to_head_low"] < 0 < gap["to_head_high"]


def test_no_signal_is_one_half() -> None:
    nothing = at(frame(readings(0, 0)), "head", 100)
    assert nothing["low"] < 0.5 < nothing["high"]


def test_axes_agree_and_equal_lengths_tell_nothing() -> None:
    table = frame(readings(0, 10, seeds=2))
    assert at(table, "head", 10, "length")["accuracy"] == at(table, "head", 25)["accuracy"]
    assert at(table, "head", TOKENS, "length")["accuracy"] == at(table, "head", 100)["accuracy"]
    assert at(table, "longer", 100)["accuracy"] == pytest.approx(0.5)
    assert at(table, "longer", 100)["ties"] == 1.0
    assert set(table["seeds"]) == {2}
    assert table[(table["axis"] == "length")]["x"].max() == TOKENS
