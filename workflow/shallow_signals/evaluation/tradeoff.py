"""Reward against KL (Figure 4): what each strategy's responses came to, and its place in the figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shallow_signals.config.statistics import Statistics
from shallow_signals.decoding.strategies import Strategy, parse
from shallow_signals.evaluation.statistics import POSITIVE, Estimate, cluster_bootstrap_mean
from shallow_signals.files import InputError, read_parquet

Doubles = NDArray[np.float64]
KEYS = ["prompt_id", "sample", "strategy"]
COLUMNS = ["label", "kind", "name", "parameter", "kl", "kl_low", "kl_high", "kl_sampled", "kl_sampled_low"]
COLUMNS += ["kl_sampled_high", "reward", "reward_low", "reward_high", "tokens", "ended", "n"]


@dataclass(frozen=True)
class Run:
    """What each strategy's responses came to, averaged over the samples of a prompt: [strategies, prompts] each."""

    prompts: list[str]
    strategies: list[Strategy]
    kl: Doubles  # exact KLs of the sampling distribution, summed over the response
    kl_sampled: Doubles  # the paper's estimate: the sampled log-ratio, summed
    reward: Doubles
    tokens: Doubles
    ended: Doubles  # share of the responses that ended before the limit of new tokens


@dataclass(frozen=True)
class Point:
    """One strategy's place in the figure."""

    strategy: Strategy
    kl: Estimate
    kl_sampled: Estimate
    reward: Estimate
    tokens: float
    ended: float


def read_run(responses: Path, rewards: Path) -> Run:
    """The responses of a decoding run with their rewards; raises `InputError` where the two files disagree."""
    made = read_parquet(responses, [*KEYS, "kl_sampling_reference", "log_ratio", "ended"])
    scored = read_parquet(rewards, [*KEYS, "reward"])
    if not made.select(KEYS).equals(scored.select(KEYS)):
        raise InputError(f"{rewards}: scores other responses than {responses} holds; score them again")
    prompts, column = _numbered(made["prompt_id"].to_pylist())
    names, row = _numbered(made["strategy"].to_pylist())
    counts = np.zeros((len(names), len(prompts)))
    np.add.at(counts, (row, column), 1)
    if (counts == 0).any():
        raise InputError(f"{responses}: not every strategy answered every prompt; decode again")

    def mean(values: NDArray[np.generic]) -> Doubles:
        sums = np.zeros_like(counts)
        np.add.at(sums, (row, column), np.asarray(values, dtype=np.float64))
        return np.asarray(sums / counts)

    kl, lengths = _sums(made["kl_sampling_reference"])
    return Run(
        prompts=prompts,
        strategies=[parse(name) for name in names],
        kl=mean(kl),
        kl_sampled=mean(_sums(made["log_ratio"])[0]),
        reward=mean(scored["reward"].to_numpy()),
        tokens=mean(lengths),
        ended=mean(made["ended"].to_numpy()),
    )


def points(run: Run, settings: Statistics) -> list[Point]:
    """Every strategy's mean KL and reward with intervals over prompts."""
    found = []
    for i, strategy in enumerate(run.strategies):
        kl = cluster_bootstrap_mean(run.kl[i], run.prompts, settings, bounds=POSITIVE)
        sampled, reward = (cluster_bootstrap_mean(of[i], run.prompts, settings) for of in (run.kl_sampled, run.reward))
        found.append(Point(strategy, kl, sampled, reward, float(run.tokens[i].mean()), float(run.ended[i].mean())))
    return found


def point_row(label: str, kind: str, parameter: float, point: Point) -> dict[str, Any]:
    """One row (keys `COLUMNS`) of the figure's table; `kind` is the strategy's, or "retrained"."""
    facts: dict[str, Any] = {"label": label, "kind": kind, "name": point.strategy.name, "parameter": parameter}
    for name in ("kl", "kl_sampled", "reward"):
        estimate = getattr(point, name)
        facts |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {**facts, "tokens": point.tokens, "ended": point.ended, "n": point.reward.n}


def beside(run: Run, other: Run) -> Run:
    """`run` with the strategies of `other` below its own; `InputError` where they answer different prompts."""
    if run.prompts != other.prompts:
        raise InputError(f"two runs answer different prompts ({len(run.prompts)} and {len(other.prompts)})")

    def stacked(name: str) -> Doubles:
        return np.concatenate([getattr(run, name), getattr(other, name)])

    return Run(
        prompts=run.prompts,
        strategies=[*run.strategies, *other.strategies],
        kl=stacked("kl"),
        kl_sampled=stacked("kl_sampled"),
        reward=stacked("reward"),
        tokens=stacked("tokens"),
        ended=stacked("ended"),
    )


def _numbered(names: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct names in order, and each one's number."""
    place = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return list(place), np.array([place[name] for name in names], dtype=np.int64)


def _sums(lists: pa.ChunkedArray) -> tuple[Doubles, NDArray[np.int64]]:
    """The sum of each list, and its length; no list is empty."""
    whole = lists.combine_chunks()
    lengths = np.asarray(whole.value_lengths().to_numpy(zero_copy_only=False), dtype=np.int64)
    values = whole.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    return np.add.reduceat(values, np.cumsum(lengths) - lengths), lengths
