"""Whether controlled decoding beats mixing at the same KL, and whether mixing is what training at another beta is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from shallow_signals.config.statistics import Statistics
from shallow_signals.decoding.strategies import mixing, policy
from shallow_signals.evaluation.statistics import Estimate, cluster_bootstrap_mean
from shallow_signals.evaluation.tradeoff import Doubles, Run, beside
from shallow_signals.files import InputError

Place = Literal["above", "below", "undecided", "outside"]
BASELINE = ("reference", "mixing", "policy")  # mixtures with a = 0, a, 1
AT_THIS_KL = "mixing at this KL"
_TIE = 1e-9  # strategies that made the same responses differ by rounding only


@dataclass(frozen=True)
class Against:
    """One strategy set against mixing; `difference` is None where mixing does not reach its KL."""

    kind: Literal["control", "retrained"]
    name: str  # of the strategy, or of the policy trained again
    against: str  # `AT_THIS_KL`, or the name of a mixture
    quantity: Literal["reward", "KL"]
    kl: float  # of the strategy
    value: float  # the quantity, of the strategy ...
    baseline: float  # ... and of what it is set against; NaN outside
    difference: Estimate | None
    place: Place


def against_mixing(run: Run, settings: Statistics) -> list[Against]:
    """Each length-control and threshold point against the mixing baseline, interpolated linearly at its KL.

    Both sides of a comparison answer the same prompts from the same random numbers, so whole prompts are resampled, and
    KLs, rewards and the interpolation are made anew each time; with fewer than `settings.min_clusters` prompts a
    t-interval over their jackknife takes the bootstrap's place. "above" and "below": the whole interval is. A point
    whose KL the baseline does not span, or not in enough of the resamples, is "outside": nothing is extrapolated.
    Intervals are pointwise. Raises `InputError` where the baseline has fewer than two points.
    """
    frontier = _Frontier(run, settings)
    return [
        _at_its_kl(frontier, i, "control", strategy.name)
        for i, strategy in enumerate(run.strategies)
        if strategy.kind not in BASELINE
    ]


def retrained_against_mixing(name: str, a: float, run: Run, again: Run, settings: Statistics) -> Iterator[Against]:
    """The samples `again` of a policy trained at beta / a against mixing with that a, of which it is the model.

    At its KL as any point; where `run` holds that mixture, also its KL and its reward minus the mixture's, paired by
    prompt. Mixing is the retrained policy exactly for whole sequences, and token by token only nearly.
    """
    both = beside(run, again)
    added = len(run.strategies)
    yield _at_its_kl(_Frontier(both, settings, added), added, "retrained", name)
    twin = policy() if a == 1 else mixing(a)
    if twin not in run.strategies:
        return
    i = run.strategies.index(twin)
    values: tuple[tuple[Literal["KL", "reward"], Doubles], ...] = (("KL", both.kl), ("reward", both.reward))
    for quantity, of in values:
        gap = cluster_bootstrap_mean(of[added] - of[i], both.prompts, settings)
        means = float(of[added].mean()), float(of[i].mean())
        yield Against("retrained", name, twin.name, quantity, float(both.kl[added].mean()), *means, gap, _place(gap))


class _Frontier:
    """The mixing baseline as a line through its points, for all prompts and for every resample of them."""

    def __init__(self, run: Run, settings: Statistics, strategies: int | None = None) -> None:
        self.run, self.settings = run, settings
        own = run.strategies[:strategies]
        self.points = np.array([i for i, strategy in enumerate(own) if strategy.kind in BASELINE])
        if len(self.points) < 2:
            raise InputError("mixing: fewer than two points of the baseline; nothing can be interpolated")

    @cached_property
    def resampled(self) -> tuple[Doubles, Doubles]:
        """Mean KLs and rewards, [resamples, strategies]: of bootstrap draws, or with each prompt left out in turn."""
        size = len(self.run.prompts)
        if self.few:
            weights = (1 - np.eye(size)) / max(1, size - 1)
        else:
            generator = np.random.default_rng(self.settings.seed)
            weights = generator.multinomial(size, np.full(size, 1 / size), self.settings.resamples) / size
        return weights @ self.run.kl.T, weights @ self.run.reward.T

    @property
    def few(self) -> bool:
        return len(self.run.prompts) < self.settings.min_clusters

    def level(self, kl: Doubles, reward: Doubles, at: float) -> float:
        """The line's reward where its KL is `at`, from one set of means [strategies]; NaN where it has no such KL."""
        order = self.points[np.argsort(kl[self.points], kind="stable")]
        return float(np.interp(at, kl[order], reward[order], left=math.nan, right=math.nan))

    def gaps(self, i: int) -> Doubles:
        """Strategy i's reward minus the line's, for every resample."""
        kl, reward = self.resampled
        return np.array([r[i] - self.level(k, r, k[i]) for k, r in zip(kl, reward, strict=True)])


def _at_its_kl(frontier: _Frontier, i: int, kind: Literal["control", "retrained"], name: str) -> Against:
    kl, reward = frontier.run.kl.mean(1), frontier.run.reward.mean(1)
    level = frontier.level(kl, reward, kl[i])
    gap = None if math.isnan(level) else _estimate(float(reward[i]) - level, frontier.gaps(i), frontier)
    place: Place = "outside" if gap is None else _place(gap)
    facts = (float(kl[i]), float(reward[i]), math.nan if gap is None else level)
    return Against(kind, name, AT_THIS_KL, "reward", *facts, gap, place)


def _estimate(value: float, gaps: Doubles, frontier: _Frontier) -> Estimate | None:
    """`value` with its interval; None where too many resamples have no gap."""
    size, tail = len(frontier.run.prompts), (1 - frontier.settings.confidence) / 2
    missing: NDArray[np.bool_] = np.isnan(gaps)
    if missing.mean() > (0 if frontier.few else tail):
        return None
    if not frontier.few:
        low, high = np.quantile(gaps[~missing], (tail, 1 - tail))
        return Estimate(value, float(low), float(high), size, size, "bootstrap over prompts")
    if size < 2:
        return Estimate(value, math.nan, math.nan, size, size, "one prompt: no interval")
    error = math.sqrt((size - 1) * float(np.var(gaps)))
    half = float(stats.t.ppf(1 - tail, size - 1)) * error
    return Estimate(value, value - half, value + half, size, size, f"t over the jackknife of {size} prompts")


def _place(difference: Estimate) -> Place:
    return "above" if difference.low > _TIE else "below" if difference.high < -_TIE else "undecided"
