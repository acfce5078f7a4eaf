"""The signal by position: R_t of section 3.1, how much of the whole is reached where, and how concentrated it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.statistics import Estimate, cluster_bootstrap_mean
from shallow_signals.signal.implicit import Doubles, LogRatios, PairRatios


def signal_at(chosen: Sequence[Doubles], rejected: Sequence[Doubles], position: int) -> tuple[Doubles, list[int]]:
    """R_t = log p(y_t | x, y_<t) - log p(z_t | x, z_<t) at 1-based `position`, for the pairs that reach it.

    `chosen` and `rejected` hold one array a pair: log-probabilities, or log-ratios for the implicit reward's signal.
    The second result are the indices of the surviving pairs: both responses have that many tokens.
    """
    alive = [i for i, (c, r) in enumerate(zip(chosen, rejected, strict=True)) if min(len(c), len(r)) >= position]
    return np.array([chosen[i][position - 1] - rejected[i][position - 1] for i in alive]), alive


def signal_by_position(
    chosen: Sequence[Doubles],
    rejected: Sequence[Doubles],
    clusters: Sequence[str],
    positions: Iterable[int],
    settings: Statistics,
) -> dict[int, Estimate]:
    """Mean R_t with an interval at each position that somebody reaches; `n` of an estimate are the survivors."""
    found = {}
    for position in positions:
        values, alive = signal_at(chosen, rejected, position)
        if alive:
            found[position] = cluster_bootstrap_mean(values, np.array(clusters)[alive], settings)
    return found


def share_reached(margins: Doubles, totals: Doubles, clusters: Sequence[str], settings: Statistics) -> Estimate:
    """The mean margin at a cut over the mean margin of whole responses, with a percentile interval over clusters.

    A ratio of means: single pairs whose total is near zero can't blow it up. Bounds are NaN where a resample's total is
    not positive (the model has no signal to share out).
    """
    names, codes = np.unique(np.asarray(clusters), return_inverse=True)
    top = np.bincount(codes, margins, len(names))
    bottom = np.bincount(codes, totals, len(names))
    generator = np.random.default_rng(settings.seed)
    draws = generator.integers(0, len(names), (settings.resamples, len(names)))
    sums = bottom[draws].sum(1)
    tail = (1 - settings.confidence) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = top[draws].sum(1) / sums
    low, high = (np.nan, np.nan) if (sums <= 0).any() else np.quantile(ratios, [tail, 1 - tail])
    value = float(margins.sum() / totals.sum())
    return Estimate(value, float(low), float(high), margins.size, len(names), "bootstrap of a ratio of means")


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
    pairs: Sequence[PairRatios], clusters: Sequence[str], settings: Statistics, share: float = 0.8
) -> tuple[Estimate, Estimate]:
    """The share of tokens that holds `share` of the |log-ratio|, and what a head of that size holds (means).

    A signal that is early makes the two agree (the head holds almost `share`); one that is sparse but spread makes the
    head hold only its own size.
    """
    best, head = [], []
    for pair in pairs:
        sizes = [tokens_holding(response, share) for response in (pair.chosen, pair.rejected)]
        best.append(float(np.mean(sizes)))
        held = [held_by_head(r, s) for r, s in zip((pair.chosen, pair.rejected), sizes, strict=True)]
        head.append(float(np.mean(held)))
    groups = np.array(clusters)
    return cluster_bootstrap_mean(best, groups, settings), cluster_bootstrap_mean(head, groups, settings)
