"""Reward against KL (Figure 4): points of each strategy, and whether control beats the mixing baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shallow_signals.config.statistics import Statistics
from shallow_signals.decoding.strategies import Strategy, parse
from shallow_signals.evaluation.statistics import Estimate, cluster_bootstrap_mean
from shallow_signals.files import InputError, read_parquet

Doubles = NDArray[np.float64]
Dominance = Literal["above", "below", "undecided", "outside"]
BASELINE = ("reference", "mixing", "policy")  # mixtures with a = 0, a, 1


@dataclass(frozen=True)
class Run:
    """What each strategy's responses came to, averaged over the samples of a prompt: [prompts] each."""

    prompts: list[str]
    strategies: list[Strategy]
    kl: Doubles  # [strategies, prompts]: exact KLs of the sampling distribution, summed over the response
    kl_sampled: Doubles  # the paper's estimate: the sampled log-ratio, summed
    reward: Doubles
    tokens: Doubles


@dataclass(frozen=True)
class Point:
    """One strategy's place in the figure."""

    strategy: Strategy
    kl: Estimate
    kl_sampled: Estimate
    reward: Estimate
    tokens: float


@dataclass(frozen=True)
class Against:
    """A control strategy's reward minus the mixing baseline's at the same KL, where the baseline reaches that KL."""

    strategy: Strategy
    difference: Estimate | None
    verdict: Dominance


def read_run(responses: Path, rewards: Path) -> Run:
    """The responses of a decoding run with their rewards; raises `InputError` where the two files disagree."""
    columns = ["prompt_id", "sample", "strategy", "kl_sampling_reference", "log_ratio"]
    made = read_parquet(responses, columns)
    scored = read_parquet(rewards, ["prompt_id", "sample", "strategy", "reward"])
    keys = ["prompt_id", "sample", "strategy"]
    if made.select(keys).to_pylist() != scored.select(keys).to_pylist():
        raise InputError(f"{rewards}: scores other responses than {responses} holds; score them again")
    prompts = list(dict.fromkeys(made["prompt_id"].to_pylist()))
    names = list(dict.fromkeys(made["strategy"].to_pylist()))
    row = np.array([names.index(name) for name in made["strategy"].to_pylist()])
    place = {prompt: number for number, prompt in enumerate(prompts)}
    column = np.array([place[prompt] for prompt in made["prompt_id"].to_pylist()])
    counts = np.zeros((len(names), len(prompts)))
    np.add.at(counts, (row, column), 1)
    if (counts == 0).any():
        raise InputError(f"{responses}: not every strategy answered every prompt; decode again")

    def mean(values: Sequence[float] | Doubles) -> Doubles:
        sums = np.zeros_like(counts)
        np.add.at(sums, (row, column), np.asarray(values, dtype=np.float64))
        return np.asarray(sums / counts)

    kls, ratios = (made[name].to_pylist() for name in ("kl_sampling_reference", "log_ratio"))
    return Run(
        prompts,
        [parse(name) for name in names],
        mean([sum(values) for values in kls]),
        mean([sum(values) for values in ratios]),
        mean(scored["reward"].to_numpy()),
        mean([len(values) for values in kls]),
    )


def points(run: Run, settings: Statistics) -> list[Point]:
    """Every strategy's mean KL and reward with intervals over prompts."""
    found = []
    for number, strategy in enumerate(run.strategies):
        kl, sampled, reward = (
            cluster_bootstrap_mean(values[number], run.prompts, settings)
            for values in (run.kl, run.kl_sampled, run.reward)
        )
        found.append(Point(strategy, kl, sampled, reward, float(run.tokens[number].mean())))
    return found


def against_mixing(run: Run, settings: Statistics) -> list[Against]:
    """Each length-control and threshold point against the mixing baseline, interpolated linearly at its KL.

    Both sides of a comparison answer the same prompts from the same random numbers, so whole prompts are resampled, and
    KLs, rewards and the interpolation are made anew each time. "above" and "below": the whole interval is. A point
    whose KL the baseline does not span, or not in enough resamples, is "outside": nothing is extrapolated.
    """
    baseline = [i for i, strategy in enumerate(run.strategies) if strategy.kind in BASELINE]
    if len(baseline) < 2:
        raise InputError("mixing: fewer than two points of the baseline; nothing can be interpolated")
    generator = np.random.default_rng(settings.seed)
    size = len(run.prompts)
    draws = generator.multinomial(size, np.full(size, 1 / size), settings.resamples) / size  # [resamples, prompts]
    kl, reward = draws @ run.kl.T, draws @ run.reward.T  # [resamples, strategies]
    tail = (1 - settings.confidence) / 2
    found = []
    for number, strategy in enumerate(run.strategies):
        if strategy.kind in BASELINE:
            continue
        value = _gap(run.kl.mean(1), run.reward.mean(1), baseline, number)
        gaps = np.array([_gap(kl[i], reward[i], baseline, number) for i in range(settings.resamples)])
        if np.isnan(value) or np.isnan(gaps).mean() > tail:
            found.append(Against(strategy, None, "outside"))
            continue
        low, high = np.nanquantile(gaps, (tail, 1 - tail))
        verdict: Dominance = "above" if low > 0 else "below" if high < 0 else "undecided"
        method = "bootstrap over prompts"
        found.append(Against(strategy, Estimate(value, float(low), float(high), size, size, method), verdict))
    return found


def _gap(kl: Doubles, reward: Doubles, baseline: Sequence[int], number: int) -> float:
    """Reward of a strategy minus the baseline's at its KL; NaN where the baseline does not reach it."""
    order = sorted(baseline, key=lambda i: kl[i])
    level = np.interp(kl[number], kl[order], reward[order], left=np.nan, right=np.nan)
    return float(reward[number] - level)
