"""Intervals, paired differences and tests for scores on clustered rows, over one or several seeds.

One estimator serves everything: a weighted mean over strata of row means (without strata a plain mean). Its sampling
error is that of the clusters' linearised contributions: row i of stratum h (weight W_h, N_h rows, mean m_h, C_h
clusters) contributes z_i = W_h (y_i - m_h) / N_h * sqrt(C_h / (C_h - 1)), and the contributions are summed per cluster.
A cluster may lie in several strata (the same prompt in two subsets): its contributions are resampled together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from shallow_signals.config.statistics import Statistics

MIN_SEEDS = 3  # runs of a trained model below which nothing is said about the model, only about the run
DEFAULTS = Statistics()
UNIT = (0.0, 1.0)
POSITIVE = (0.0, math.inf)
_BLOCK = 4_000_000  # cluster draws that stand in memory at once

Floats = NDArray[np.float64]
Alternative = Literal["two-sided", "greater", "less"]
Verdict = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; the bounds are NaN where no interval can be had (a single cluster)."""

    value: float
    low: float
    high: float
    n: int  # rows
    clusters: int
    method: str
    seeds: int = 1  # with fewer than three the interval is over clusters only: it speaks of these runs


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; raises `ValueError` unless 0 <= successes <= n and n > 0."""
    _check_counts(successes, n)
    return _wilson(successes / n, n, confidence)


def _wilson(share: float, n: float, confidence: float) -> tuple[float, float]:
    z = float(stats.norm.ppf((1 + confidence) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return min(share, max(0.0, centre - half)), max(
        share, min(1.0, centre + half)
    )  # but for rounding, share lies within


def binomial_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of a proportion."""
    _check_counts(successes, n)
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, successes, n - successes + 1)) if successes else 0.0
    high = float(stats.beta.ppf(1 - tail, successes + 1, n - successes)) if successes < n else 1.0
    return low, high


def binomial_p(successes: int, n: int, bound: float, alternative: Alternative = "greater") -> float:
    """Exact p-value of the hypothesis that the true proportion is `bound` (at most it, for "greater").

    For bounds over many cells pass the p-values of all of them to `holm`.
    """
    _check_counts(successes, n)
    return float(stats.binomtest(successes, n, bound, alternative=alternative).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: rejecting those below alpha errs family-wise at most at alpha."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=float)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(p) for p in adjusted]


def mcnemar(a: ArrayLike, b: ArrayLike) -> tuple[int, int, float]:
    """Rows that only `a` gets right, rows that only `b` does, and the exact two-sided p-value that both are as likely.

    `a` and `b` are boolean [n] over the same rows; each row must be a cluster by itself.
    """
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    only_a, only_b = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    if only_a + only_b == 0:
        return 0, 0, 1.0
    return only_a, only_b, binomial_p(only_a, only_a + only_b, 0.5, "two-sided")


def cluster_bootstrap_mean(
    values: ArrayLike,
    clusters: ArrayLike,
    settings: Statistics = DEFAULTS,
    *,
    strata: ArrayLike | None = None,
    weights: Mapping[str, float] | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """The mean of `values`, [n] or [seeds, n] with the same rows for all seeds, with one interval.

    * One or two seeds: the percentile interval of a bootstrap over clusters, for these runs. Under
      `settings.min_clusters` a t-interval over clusters (of the ratio of sums, linearised). Where every row is its own
      cluster and every value 0 or 1, and `bounds` say that they are shares, Wilson's interval.
    * From three seeds on: one t-interval whose variance is that over clusters plus that of the seeds' mean, with
      Satterthwaite's degrees of freedom. Resampling three seeds would understate their spread by a third and use the
      normal's quantile where Student's is 4.3; it covers the truth far too rarely.

    With `strata` ([n] labels) and `weights` (per label; normalised over the strata present) the mean is the weighted
    mean of the strata's means. Raises `ValueError` for empty or mismatching input.
    """
    runs = _runs(values)
    design = _design(clusters, runs.shape[1], strata, weights)
    rows = runs.mean(axis=0)
    share = bounds == UNIT and np.isin(rows, (0.0, 1.0)).all()
    if len(runs) == 1 and strata is None and design.singletons and share:
        n = rows.size
        low, high = wilson(int(rows.sum()), n, settings.confidence)
        return Estimate(float(rows.mean()), low, high, n, n, "Wilson")
    return _estimate(rows, design, [runs @ design.share], settings, bounds)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike,
    settings: Statistics = DEFAULTS,
    *,
    seeds: Literal["paired", "independent"] = "paired",
    strata: ArrayLike | None = None,
    weights: Mapping[str, float] | None = None,
) -> Estimate:
    """The mean of a - b over the same rows ([n], or [seeds, n]), with an interval as `cluster_bootstrap_mean` makes it.

    Both sides share the resampled clusters. "paired" seeds: run s of `a` is set against run s of `b`; "independent":
    their numbers may differ and the variances of the two means add up. `bounds` are -1 and 1.
    """
    first, second = _runs(a), _runs(b)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"a has {first.shape[1]} rows and b {second.shape[1]}: a paired difference needs the same rows"
        )
    if seeds == "paired" and len(first) != len(second):
        raise ValueError(f"a has {len(first)} seeds and b {len(second)}: paired seeds need as many on both sides")
    design = _design(clusters, first.shape[1], strata, weights)
    means = [first @ design.share, second @ design.share]
    spreads = [means[0] - means[1]] if seeds == "paired" else means
    rows = first.mean(axis=0) - second.mean(axis=0)
    return _estimate(rows, design, spreads, settings, (-1.0, 1.0))


def mean_over_runs(
    values: Sequence[float], n: int, clusters: int, settings: Statistics = DEFAULTS, what: str = "runs"
) -> Estimate:
    """The mean of whole runs' scores (shuffles of the labels, say) with a t-interval over the runs alone."""
    scores = np.asarray(values, dtype=float)
    mean, count = float(scores.mean()), scores.size
    if count < 2:
        return Estimate(mean, math.nan, math.nan, n, clusters, f"one of the {what}: no interval", count)
    half = float(stats.t.ppf((1 + settings.confidence) / 2, count - 1) * scores.std(ddof=1) / math.sqrt(count))
    return Estimate(mean, mean - half, mean + half, n, clusters, f"t over {count} {what}", count)


def comparable(difference: Estimate, margin: float, *, trained: bool = True) -> Verdict:
    """Whether a score is "comparable" to another: its difference lies above -margin, interval and all.

    Fails where the whole interval lies below; undecided between, without an interval, and, for a claim about a trained
    model, with fewer than three seeds.
    """
    if math.isnan(difference.low) or (trained and difference.seeds < MIN_SEEDS):
        return "undecided"
    if difference.low > -margin:
        return "holds"
    return "fails" if difference.high < -margin else "undecided"


@dataclass(frozen=True)
class _Design:
    clusters: NDArray[np.intp]  # [n] codes
    count: int
    strata: NDArray[np.intp]  # [n] codes
    share: Floats  # [n] weight of each row in the mean; sums to 1
    correction: Floats  # [n] sqrt(C_h / (C_h - 1)); infinite where a stratum is one cluster
    effective: float  # clusters of equal weight with the same sum of squared weights

    @property
    def singletons(self) -> bool:
        return self.count == self.clusters.size


def _design(clusters: ArrayLike, n: int, strata: ArrayLike | None, weights: Mapping[str, float] | None) -> _Design:
    names, codes = np.unique(np.asarray(clusters), return_inverse=True)
    labels, members = np.unique(np.zeros(n) if strata is None else np.asarray(strata), return_inverse=True)
    if codes.size != n or members.size != n:
        raise ValueError(f"{n} rows, but {codes.size} cluster labels and {members.size} stratum labels")
    weight = np.ones(len(labels))
    if weights is not None:
        missing = [str(label) for label in labels if str(label) not in weights]
        if missing:
            raise ValueError(f"no weight for {', '.join(missing)}")
        weight = np.array([weights[str(label)] for label in labels], dtype=float)
    weight /= weight.sum()
    rows = np.bincount(members, minlength=len(labels))
    within = np.array([np.unique(codes[members == h]).size for h in range(len(labels))])
    with np.errstate(divide="ignore"):
        correction = np.sqrt(within / (within - 1.0))
    share = (weight / rows)[members]
    effective = 1.0 / float(np.sum(weight**2 / within))
    return _Design(codes, len(names), members, share, correction[members], effective)


def _estimate(
    rows: Floats, design: _Design, spreads: list[Floats], settings: Statistics, bounds: tuple[float, float]
) -> Estimate:
    """Point and interval from per-row means over runs, and the scores of whole runs on each independent side."""
    value = float(rows @ design.share)
    runs = min(side.size for side in spreads)
    facts = {"n": rows.size, "clusters": design.count, "seeds": runs}
    seed_parts = [float(side.var(ddof=1)) / side.size if runs >= MIN_SEEDS else 0.0 for side in spreads]
    if design.count < 2:
        return Estimate(value, math.nan, math.nan, method="one cluster: no interval", **facts)
    totals = _contributions(rows, value, design)
    variance = float(totals @ totals)
    if variance + sum(seed_parts) < 1e-24:
        return _constant(value, design, settings, bounds, facts)
    freedom = max(design.count - int(design.strata.max()) - 1, 1)
    tail = (1 - settings.confidence) / 2
    if runs >= MIN_SEEDS:
        degrees = [
            (variance, freedom),
            *((part, side.size - 1) for part, side in zip(seed_parts, spreads, strict=True)),
        ]
        whole = variance + sum(seed_parts)
        df = whole**2 / sum(part**2 / f for part, f in degrees)
        half = float(stats.t.ppf(1 - tail, df)) * math.sqrt(whole)
        low, high, method = value - half, value + half, f"t over clusters and {runs} seeds (df {df:.0f})"
    elif design.count < settings.min_clusters:
        half = float(stats.t.ppf(1 - tail, freedom)) * math.sqrt(variance)
        low, high, method = value - half, value + half, f"t over {design.count} clusters (ratio of sums)"
    else:
        low, high = np.quantile(value + _resampled(totals, settings), (tail, 1 - tail))
        method = "bootstrap over clusters"
    return Estimate(value, max(float(low), bounds[0]), min(float(high), bounds[1]), method=method, **facts)


def _contributions(rows: Floats, value: float, design: _Design) -> Floats:
    """Centred contributions of the clusters, [clusters]; the sum of their squares is the variance over clusters."""
    sizes = np.bincount(design.strata)
    means = (np.bincount(design.strata, rows) / sizes)[design.strata]
    alone = np.isinf(design.correction)
    # A stratum of one cluster shows no spread of its own; it gets that of single rows around the overall value. Signs
    # alternate from one such stratum to the next: contributions of one sign would be taken out by the centring below.
    spread = math.sqrt(float(np.mean((rows - value) ** 2)))
    turn = np.zeros(sizes.size)
    lone = np.unique(design.strata[alone])
    turn[lone] = np.where(np.arange(lone.size) % 2, -1.0, 1.0)
    own = (rows - means) * np.where(alone, 1.0, design.correction)
    deviations = np.where(alone, spread * turn[design.strata], own)
    totals = np.bincount(design.clusters, design.share * deviations)
    return np.asarray(totals - totals.mean(), dtype=np.float64)


def _resampled(totals: Floats, settings: Statistics) -> Floats:
    """Sums of as many contributions drawn with replacement, [resamples]; in blocks, to bound the memory."""
    if totals.size * settings.resamples <= _BLOCK:
        return np.asarray(_times_drawn(totals.size, settings.resamples, settings.seed) @ totals)
    generator = np.random.default_rng(settings.seed)
    block = max(1, _BLOCK // totals.size)
    sums = []
    for start in range(0, settings.resamples, block):
        drawn = generator.integers(0, totals.size, (min(block, settings.resamples - start), totals.size))
        sums.append(totals[drawn].sum(axis=1))
    return np.concatenate(sums)


@lru_cache(maxsize=4)
def _times_drawn(clusters: int, resamples: int, seed: int) -> Floats:
    """How often each resample draws each cluster, [resamples, clusters]: a table's many estimates share the draws."""
    drawn = np.random.default_rng(seed).integers(0, clusters, (resamples, clusters))
    places = drawn + clusters * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=resamples * clusters).reshape(resamples, clusters).astype(np.float64)


def _constant(
    value: float, design: _Design, settings: Statistics, bounds: tuple[float, float], facts: dict[str, int]
) -> Estimate:
    """An interval where no row differs from another: resampling would give it no width, which is not knowledge."""
    if bounds == UNIT and abs(value - round(value)) < 1e-9:
        low, high = _wilson(round(value), design.effective, settings.confidence)
        return Estimate(
            float(round(value)), low, high, method="Wilson on the clusters' effective number (all equal)", **facts
        )
    if bounds == (-1.0, 1.0) and abs(value) < 1e-12:
        # As many clusters without a difference bound its share by 1 - (alpha / 2)^(1 / C): the "rule of three".
        bound = 1 - ((1 - settings.confidence) / 2) ** (1 / design.effective)
        return Estimate(0.0, -bound, bound, method="no row differs: bound on the share that does", **facts)
    return Estimate(value, value, value, method="all values equal", **facts)


def _runs(values: ArrayLike) -> Floats:
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"values of shape {table.shape}; expected [rows] or [seeds, rows] with at least one row")
    if not np.isfinite(table).all():
        raise ValueError("values hold NaN or infinity")
    return table


def _check_counts(successes: int, n: int) -> None:
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: expected 0 <= successes <= n and n > 0")
