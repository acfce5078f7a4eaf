"""The signal by position: R_t of section 3.1, how much of the whole is reached where, and how concentrated it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.statistics import Estimate, cluster_bootstrap_mean
from shallow_signals.models.records import Floats
from shallow_signals.signal.implicit import Doubles, LogRatios, PairRatios

Run = Sequence[tuple[Floats, Floats]]  # [n] one number per token of each chosen and each rejected response
Lengths = Callable[[int], NDArray[np.int64]]  # tokens of a response -> numbers of tokens read of it, [K]
_NOTHING = "no signal to share out"


def signal_at(run: Run, positions: Sequence[int]) -> Doubles:
    """R_t = log p(y_t | x, y_<t) - log p(z_t | x, z_<t) at 1-based `positions`, [n, positions].

    `run` holds log-probabilities, or log-ratios for the implicit reward's signal. NaN where either response has ended.
    """
    where = np.asarray(positions, dtype=np.int64) - 1
    found = np.full((len(run), len(where)), np.nan)
    for row, (chosen, rejected) in zip(found, run, strict=True):
        alive = where < min(len(chosen), len(rejected))
        row[alive] = chosen[where[alive]].astype(np.float64) - rejected[where[alive]]
    return found


def cumulative_at(run: Run, lengths: Lengths) -> Doubles:
    """Sums over what is read of chosen minus those of rejected, [n, K]; an ended response adds nothing more."""
    return np.array([_prefix_sums(c, lengths(len(c))) - _prefix_sums(r, lengths(len(r))) for c, r in run])


def first_tokens(positions: Sequence[int]) -> Lengths:
    """The first t tokens for each t of `positions`; all tokens of a shorter response."""
    grid = np.asarray(positions, dtype=np.int64)
    return lambda tokens: np.minimum(grid, tokens)


def first_percents(percents: Sequence[int]) -> Lengths:
    """Percentages of a response's own tokens: floor, at least 1."""
    grid = np.asarray(percents, dtype=np.int64)
    return lambda tokens: np.maximum(1, grid * tokens // 100)


def signal_by_position(
    runs: Sequence[Run], clusters: Sequence[str], positions: Sequence[int], settings: Statistics
) -> dict[int, Estimate]:
    """Mean R_t with an interval at each position that somebody reaches; `n` of an estimate are the survivors."""
    values = np.array([signal_at(run, positions) for run in runs])
    groups = np.array(clusters)
    found = {}
    for p, position in enumerate(positions):
        alive = ~np.isnan(values[0, :, p])
        if alive.any():
            found[position] = cluster_bootstrap_mean(values[:, alive, p], groups[alive], settings)
    return found


def share_reached(margins: Doubles, totals: Doubles, clusters: Sequence[str], settings: Statistics) -> list[Estimate]:
    """Mean margins at K cuts, [seeds, n, K], over the mean margin of whole responses, [seeds, n], with intervals.

    Ratios of means: single pairs whose total is near zero can't blow them up. An interval is that of the linearised
    ratio, rho + (margin - rho total) / mean total. NaN bounds unless the whole interval of the mean total is positive:
    then there is no signal to share out.
    """
    groups = np.array(clusters)
    whole = float(np.mean(totals))
    total = cluster_bootstrap_mean(totals, groups, settings)
    if whole == 0:
        return [replace(total, value=math.nan, low=math.nan, high=math.nan, method=_NOTHING)] * margins.shape[2]
    found = []
    for at in np.moveaxis(margins, 2, 0):
        ratio = float(np.mean(at)) / whole
        share = cluster_bootstrap_mean(ratio + (at - ratio * totals) / whole, groups, settings)
        found.append(share if total.low > 0 else replace(share, low=math.nan, high=math.nan, method=_NOTHING))
    return found


def tokens_holding(response: LogRatios, share: float = 0.8) -> float:
    """The smallest share of a response's tokens whose |log-ratio| adds up to `share` of the whole."""
    sizes = np.sort(np.abs(response.tokens.astype(np.float64)))[::-1]
    if sizes.sum() == 0:
        return 1.0
    # A hair of tolerance: the sum over all tokens must count as the whole in floating point, too.
    needed = int(np.searchsorted(np.cumsum(sizes), share * sizes.sum() * (1 - 1e-12))) + 1
    return needed / sizes.size


def held_by_head(response: LogRatios, size: float) -> float:
    """The share of a response's whole |log-ratio| that its first `size` (a share) of tokens holds."""
    sizes = np.abs(response.tokens.astype(np.float64))
    first = max(1, round(size * sizes.size))
    return float(sizes[:first].sum() / sizes.sum()) if sizes.sum() else size


def concentration(
    runs: Sequence[Sequence[PairRatios]], clusters: Sequence[str], settings: Statistics, share: float = 0.8
) -> tuple[Estimate, Estimate]:
    """The share of tokens that holds `share` of the |log-ratio|, and what a head of that size holds (means).

    A signal that is early makes the two agree (the head holds almost `share`); one that is sparse but spread makes the
    head hold only its own size.
    """
    best, head = np.empty((2, len(runs), len(clusters)))
    for s, run in enumerate(runs):
        for i, pair in enumerate(run):
            sides = [(response, tokens_holding(response, share)) for response in (pair.chosen, pair.rejected)]
            best[s, i] = np.mean([size for _, size in sides])
            head[s, i] = np.mean([held_by_head(response, size) for response, size in sides])
    groups = np.array(clusters)
    return cluster_bootstrap_mean(best, groups, settings), cluster_bootstrap_mean(head, groups, settings)


def _prefix_sums(values: Floats, lengths: NDArray[np.int64]) -> Doubles:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])[lengths]
