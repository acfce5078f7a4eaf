"""The signal by position as rows of a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.statistics import Estimate, cluster_bootstrap_mean
from shallow_signals.signal import position
from shallow_signals.signal.position import Run
from shallow_signals.signal.ratios import Readings

COLUMNS = ["quantity", "measure", "axis", "x", "value", "low", "high", "n", "clusters", "seeds"]
HOLDING = 80  # percent of the |log-ratio| whose holders are counted


def row(quantity: str, measure: str, axis: str, x: int, found: Estimate) -> dict[str, Any]:
    """One row (keys `COLUMNS`)."""
    facts = (quantity, measure, axis, x, found.value, found.low, found.high, found.n, found.clusters, found.seeds)
    return dict(zip(COLUMNS, facts, strict=True))


def position_rows(
    found: Readings, positions: Sequence[int], ratios: Sequence[int], settings: Statistics
) -> Iterator[dict[str, Any]]:
    """One dictionary (keys `COLUMNS`) per number; x is a 1-based position, or (`axis` "ratio") a percentage.

    Positions are those of `positions` that some response reaches, and the longest response's last.

    `quantity`: "log_prob" (the policy's own) and "log_ratio" (policy over reference), in nats, chosen minus rejected:
    their mean "signal" R_t at a position, where n are the pairs that both responses of reach it; their "cumulative" sum
    over the first tokens; its "share_reached" of the whole. "tokens": the share of all tokens read by then, which an
    even signal would reach; "pairs": the share in which both responses are that long ("survivors").
    Of the |log-ratio|: the share of tokens "holding" x percent, and what is "held_by_head", the first as many.
    """
    ratio_runs: list[Run] = [[(p.chosen.tokens, p.rejected.tokens) for p in run] for run in found.runs]
    first = ratio_runs[0]
    longest = max(max(len(c), len(r)) for c, r in first)
    grid = [*(t for t in positions if t < longest), longest]
    axes = (("position", grid, position.first_tokens(grid)), ("ratio", list(ratios), position.first_percents(ratios)))
    for quantity, runs in (("log_prob", found.policies), ("log_ratio", ratio_runs)):
        for at, mean in position.signal_by_position(runs, found.clusters, grid, settings).items():
            yield row(quantity, "signal", "position", at, mean)
        totals = np.array([position.cumulative_at(run, position.first_percents([100]))[:, 0] for run in runs])
        for axis, values, cuts in axes:
            sums = np.array([position.cumulative_at(run, cuts) for run in runs])
            shares = position.share_reached(sums, totals, found.clusters, settings)
            for k, x in enumerate(values):
                mean = cluster_bootstrap_mean(sums[:, :, k], found.clusters, settings)
                yield row(quantity, "cumulative", axis, x, mean)
                yield row(quantity, "share_reached", axis, x, shares[k])
    lengths = np.array([(len(c), len(r)) for c, r in first])
    for at in grid:
        read = float(np.minimum(lengths, at).sum() / lengths.sum())
        yield row("tokens", "share_reached", "position", at, _counted(read, found))
        alive = float((lengths.min(axis=1) >= at).mean())
        yield row("pairs", "survivors", "position", at, _counted(alive, found))
    best, head = position.concentration(found.runs, found.clusters, settings, HOLDING / 100)
    yield row("log_ratio", "holding", "ratio", HOLDING, best)
    yield row("log_ratio", "held_by_head", "ratio", HOLDING, head)


def _counted(value: float, found: Readings) -> Estimate:
    """A fact about the data that were read: no interval."""
    return Estimate(value, math.nan, math.nan, len(found.clusters), len(set(found.clusters)), "counted")
