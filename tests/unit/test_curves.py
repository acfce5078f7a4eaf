"""Curves of implicit rewards on arrays whose signal is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from shallow_signals.config.implicit import ImplicitReward
from shallow_signals.config.statistics import Statistics
from shallow_signals.signal.curves import COLUMNS, accuracy_curves
from shallow_signals.signal.implicit import LogRatios, PairRatios
from shallow_signals.signal.ratios import Readings

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
    return Readings(
        runs, [[(p.chosen.tokens, p.rejected.tokens) for p in run] for run in runs], [str(i) for i in range(300)]
    )


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
    assert set(table[table["curve"] != "flipped"]["seeds"]) == {2}
    assert table[(table["axis"] == "length")]["x"].max() == TOKENS


def test_flipped_labels_are_one_half_whatever_the_policy_knows() -> None:
    flipped = at(frame(readings(0, 40)), "flipped", 100)
    assert flipped["low"] < 0.5 < flipped["high"]
    assert flipped["high"] - flipped["low"] > 0.1  # 99.9% of 300 pairs


def test_shuffles_are_averaged_with_an_interval_over_them() -> None:
    few = [(0, 0), (0, 0), (0, 2), (0, 40), (0, 40)]
    parts = [readings(*span) for span in few]
    together = Readings([p.runs[0] for p in parts], [p.policies[0] for p in parts], parts[0].clusters)
    table = pd.DataFrame(accuracy_curves(parts[0], SPEC, SETTINGS, shuffles=together), columns=COLUMNS)
    means = [at(frame(part), "head", 100)["accuracy"] for part in parts]
    row = at(table, "shuffled", 100)
    assert row["accuracy"] == pytest.approx(np.mean(means))
    test = stats.ttest_1samp(means, 0.0).confidence_interval(SETTINGS.confidence)
    assert (row["low"], row["high"]) == pytest.approx((test.low, test.high))
    assert row["seeds"] == 5
    assert "shuffled" not in set(frame(parts[0])["curve"])


def halves(noise: float = 0.3, blind: bool = False) -> tuple[Readings, Readings]:
    """Two models that see the same sparse signal, one token in ten, in noise of their own; `blind` ones see none of it.

    The signal is where a fixed random draw puts it, in chosen (up) and in rejected (down) alike.
    """
    places = np.random.default_rng(7)
    where = [[places.permutation(TOKENS)[: TOKENS // 10] for _ in range(2)] for _ in range(300)]

    def one(random: np.random.Generator, at: np.ndarray, lift: float) -> LogRatios:
        values = random.normal(0, noise, TOKENS)
        values[at] += 0.0 if blind else lift
        closing_at = np.arange(1, TOKENS + 1, dtype=np.int32)
        return LogRatios(values.astype(np.float32), closing_at, np.zeros(TOKENS, np.float32))

    found = []
    for seed in (1, 2):
        random = np.random.default_rng(seed)
        run = [PairRatios(str(i), one(random, c, 0.5), one(random, r, -0.5)) for i, (c, r) in enumerate(where)]
        found.append(Readings([run], [[]], [str(i) for i in range(300)]))
    return found[0], found[1]


def crossed(halves: tuple[Readings, Readings]) -> pd.DataFrame:
    return pd.DataFrame(accuracy_curves(readings(0, 10), SPEC, SETTINGS, halves), columns=COLUMNS)


def test_another_models_pick_beats_head_and_chance_where_the_signal_is_sparse() -> None:
    table = crossed(halves())
    picked, floor = at(table, "topshare", 25), at(table, "random", 25)
    assert picked["low"] > floor["high"]
    assert picked["to_head_low"] > 0
    assert floor["to_head_low"] < 0 < floor["to_head_high"]
    assert table[table["curve"] == "topshare"]["x"].tolist() == [25, 50]
    # The roles are exchanged: by hand, from the sums over the other one's largest tokens.
    first, second = (half.runs[0] for half in halves())
    right = []
    for summed, by in ((first, second), (second, first)):
        for pair, other in zip(summed, by, strict=True):
            sums = []
            for response, selector in ((pair.chosen, other.chosen), (pair.rejected, other.rejected)):
                cut = sorted(np.abs(selector.tokens))[-TOKENS // 4]
                sums.append(response.tokens[np.abs(selector.tokens) >= cut].sum())
            right.append(sums[0] > sums[1])
    assert picked["accuracy"] == pytest.approx(np.mean(right))


def test_a_pick_without_knowledge_is_chance() -> None:
    table = crossed(halves(blind=True))
    for curve in ("topshare", "random", "half_head"):
        row = at(table, curve, 50)
        assert row["low"] < 0.5 < row["high"]
    blind, seeing = halves(blind=True)[0], halves()[1]
    swapped = pd.DataFrame(
        accuracy_curves(readings(0, 10), SPEC, SETTINGS, (seeing, blind)), columns=COLUMNS
    )  # each picks for the other: neither the blind one's sums nor its picks can use what the other knows
    assert at(swapped, "topshare", 25)["accuracy"] < at(crossed(halves()), "topshare", 25)["low"]


def test_without_halves_no_pick_is_shown() -> None:
    assert not {"topshare", "random", "half_head"} & set(frame(readings(0, 10))["curve"])
