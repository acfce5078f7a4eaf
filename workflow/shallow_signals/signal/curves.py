"""Accuracy of implicit rewards at every cut, with what it must be read against, as rows of a table (Figures 2, 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from shallow_signals.config.implicit import ImplicitReward
from shallow_signals.config.statistics import Statistics
from shallow_signals.data.pairs import uniform_hash
from shallow_signals.evaluation.statistics import (
    UNIT,
    Estimate,
    binomial_interval,
    cluster_bootstrap_mean,
    mean_over_runs,
    paired_difference,
)
from shallow_signals.signal import implicit
from shallow_signals.signal.implicit import Doubles, PairRatios
from shallow_signals.signal.ratios import Readings

COLUMNS = ["axis", "curve", "x", "accuracy", "low", "high", "n", "clusters", "seeds", "ties", "to_head", "to_head_low"]
COLUMNS += ["to_head_high"]
FLIPPED = 0.999  # confidence of the interval that flipped labels are held against
Margins = Callable[[Sequence[PairRatios]], Doubles]


def accuracy_curves(
    found: Readings,
    spec: ImplicitReward,
    settings: Statistics,
    halves: tuple[Readings, Readings] | None = None,
    shuffles: Readings | None = None,
) -> Iterator[dict[str, Any]]:
    """One dictionary (keys `COLUMNS`) per curve and cut; x is the percentage kept, or the number of tokens.

    Curves: `head` and its twin with an end of turn at the cut (`head_closed`), `tail`, `window`, `min_length` (both
    responses cut to the shorter one's share), and `longer` (the longer one wins). `to_head` is the paired difference to
    the head of equal size.

    `halves` are policies trained on one half of the pairs each, seed by seed. Each sums its own log-ratios over the
    tokens that the other one picks as the largest (`topshare`), over as many random ones (`random`, the floor) and over
    as many first ones (`half_head`): the two exchange roles, and their outcomes are averaged.

    Two rows are controls that must be one half: `flipped`, the first run against labels flipped at random (with a 99.9%
    binomial interval), and `shuffled`, the mean of the `shuffles`, policies trained on shuffled labels, with a
    t-interval over them and their number in place of the seeds.
    """
    for percent in spec.ratios:
        at = partial(implicit.margins_at_ratio, percent=percent)
        head = _correct(at, found)
        yield _row("ratio", "head", percent, head, found, settings)
        yield _row("ratio", "head_closed", percent, _correct(partial(at, closing=True), found), found, settings, head)
        if percent < 100:
            for side in ("tail", "window"):
                yield _row("ratio", side, percent, _correct(partial(at, side=side), found), found, settings, head)
        shorter = _correct(partial(implicit.margins_min_length, percent=percent), found)
        yield _row("ratio", "min_length", percent, shorter, found, settings, head)
    longest = max(max(len(p.chosen), len(p.rejected)) for p in found.runs[0])
    for tokens in [length for length in spec.lengths if length < longest] + [longest]:
        head = _correct(partial(implicit.margins_at_length, tokens=tokens), found)
        yield _row("length", "head", tokens, head, found, settings)
    lengths = np.array([[[len(p.chosen) - len(p.rejected) for p in found.runs[0]]]], dtype=np.float64)
    whole = _correct(partial(implicit.margins_at_ratio, percent=100), found)
    longer = implicit.correct(lengths).repeat(whole.shape[1], axis=1)
    yield _row("ratio", "longer", 100, longer, found, settings, whole)
    yield _flipped(whole[0, 0], found)
    if shuffles:
        yield _shuffled(_correct(partial(implicit.margins_at_ratio, percent=100), shuffles)[0], shuffles, settings)
    if halves:
        yield from _crossed_curves(*halves, spec.ratios, settings)


def _crossed_curves(
    first: Readings, second: Readings, ratios: Sequence[int], settings: Statistics
) -> Iterator[dict[str, Any]]:
    for percent in ratios:
        head = _correct(partial(implicit.margins_at_ratio, percent=percent), first, second)
        yield _row("ratio", "half_head", percent, head, first, settings)
        if percent < 100:
            picked = np.array([_picked(first, second, percent), _picked(second, first, percent)])
            yield _row("ratio", "topshare", percent, picked, first, settings, head)
            floor = _correct(partial(implicit.margins_random, percent=percent, seed=settings.seed), first, second)
            yield _row("ratio", "random", percent, floor, first, settings, head)


def _flipped(correct: Doubles, found: Readings) -> dict[str, Any]:
    flips = np.array([uniform_hash("flip", pair.pair_id) < 0.5 for pair in found.runs[0]])
    outcomes = np.where(flips, 1 - correct, correct)
    low, high = binomial_interval(int(outcomes.sum()), len(outcomes), FLIPPED)
    mean = Estimate(float(outcomes.mean()), low, high, len(outcomes), len(set(found.clusters)), "binomial")
    return _named("ratio", "flipped", 100, mean, float((correct == 0.5).mean()))


def _shuffled(correct: Doubles, found: Readings, settings: Statistics) -> dict[str, Any]:
    means, groups = correct.mean(axis=1).tolist(), found.clusters
    mean = mean_over_runs(means, len(groups), len(set(groups)), settings, "shuffles")
    return _named("ratio", "shuffled", 100, mean, float((correct == 0.5).mean()))


def _correct(margins: Margins, *roles: Readings) -> Doubles:
    """[roles, seeds, n]: models that exchange roles are one run of their seed."""
    return np.array([[implicit.correct(margins(run)) for run in found.runs] for found in roles])


def _picked(summed: Readings, selectors: Readings, percent: int) -> Doubles:
    runs = zip(summed.runs, selectors.runs, strict=True)
    return np.array([implicit.correct(implicit.margins_topshare(run, by, percent)) for run, by in runs])


def _row(
    axis: str,
    curve: str,
    x: int,
    correct: Doubles,
    found: Readings,
    settings: Statistics,
    head: Doubles | None = None,
) -> dict[str, Any]:
    groups = np.array(found.clusters)
    rows = correct.mean(axis=0)
    value = cluster_bootstrap_mean(rows, groups, settings, bounds=UNIT)
    gap: Estimate | None = None if head is None else paired_difference(rows, head.mean(axis=0), groups, settings)
    return _named(axis, curve, x, value, float((correct == 0.5).mean()), gap)


def _named(axis: str, curve: str, x: int, value: Estimate, ties: float, gap: Estimate | None = None) -> dict[str, Any]:
    facts = [axis, curve, x, value.value, value.low, value.high, value.n, value.clusters, value.seeds]
    facts += [ties, *((gap.value, gap.low, gap.high) if gap else (None, None, None))]
    return dict(zip(COLUMNS, facts, strict=True))
