"""Accuracy of implicit rewards at every cut, with what it must be read against, as rows of a table (Figures 2, 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shallow_signals.config.statistics import Statistics
from shallow_signals.config.study import ImplicitReward
from shallow_signals.evaluation.statistics import UNIT, Estimate, cluster_bootstrap_mean, paired_difference
from shallow_signals.files import InputError, read_parquet
from shallow_signals.models.logprob_files import read_logprobs
from shallow_signals.signal import implicit
from shallow_signals.signal.implicit import Doubles, PairRatios, log_ratios

COLUMNS = ["axis", "curve", "x", "accuracy", "low", "high", "n", "clusters", "seeds", "ties", "to_head", "to_head_low"]
COLUMNS += ["to_head_high"]
Margins = Callable[[Sequence[PairRatios]], Doubles]


@dataclass(frozen=True)
class Readings:
    """One data set read by every seed's policy and by the reference."""

    runs: list[list[PairRatios]]  # [seeds][n], the same pairs in the same order
    clusters: list[str]  # [n]


def read_ratios(policies: Sequence[Path], reference: Path) -> Readings:
    """Log-ratios of the pairs that the policies' files of log-probabilities hold; the reference's may hold more.

    Raises `InputError` where a file lacks pairs of the first policy's.
    """
    rows = read_parquet(policies[0], ["pair_id", "cluster"]).to_pylist()
    keys = [row["pair_id"] for row in rows]
    base = read_logprobs(reference)
    runs = []
    for path in policies:
        read = read_logprobs(path)
        for file, held in ((path, read), (reference, base)):
            missing = [key for key in keys if key not in held]
            if missing:
                raise InputError(
                    f"{file}: lacks {len(missing)} pairs of {policies[0]}, {missing[0]} first; score it again"
                )
        runs.append([PairRatios(key, *map(log_ratios, read[key], base[key])) for key in keys])
    return Readings(runs, [row["cluster"] for row in rows])


def accuracy_curves(found: Readings, spec: ImplicitReward, settings: Statistics) -> Iterator[dict[str, Any]]:
    """One dictionary (keys `COLUMNS`) per curve and cut; x is the percentage kept, or the number of tokens.

    Curves: `head` and its twin with an end of turn at the cut (`head_closed`), `tail`, `window`, `min_length` (both
    responses cut to the shorter one's share), and `longer` (the longer one wins). `to_head` is the paired difference to
    the head of equal size.
    """
    for percent in spec.ratios:
        at = partial(implicit.margins_at_ratio, percent=percent)
        head = _correct(found, at)
        yield _row("ratio", "head", percent, head, found, settings)
        yield _row("ratio", "head_closed", percent, _correct(found, partial(at, closing=True)), found, settings, head)
        if percent < 100:
            for side in ("tail", "window"):
                yield _row("ratio", side, percent, _correct(found, partial(at, side=side)), found, settings, head)
        shorter = _correct(found, partial(implicit.margins_min_length, percent=percent))
        yield _row("ratio", "min_length", percent, shorter, found, settings, head)
    longest = max(max(len(p.chosen), len(p.rejected)) for p in found.runs[0])
    for tokens in [length for length in spec.lengths if length < longest] + [longest]:
        head = _correct(found, partial(implicit.margins_at_length, tokens=tokens))
        yield _row("length", "head", tokens, head, found, settings)
    lengths = np.array([[len(p.chosen) - len(p.rejected) for p in found.runs[0]]], dtype=np.float64)
    whole = _correct(found, partial(implicit.margins_at_ratio, percent=100))
    longer = implicit.correct(lengths).repeat(len(whole), axis=0)
    yield _row("ratio", "longer", 100, longer, found, settings, whole)


def _correct(found: Readings, margins: Margins) -> Doubles:
    return np.array([implicit.correct(margins(run)) for run in found.runs])


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
    value = cluster_bootstrap_mean(correct, groups, settings, bounds=UNIT)
    gap: Estimate | None = None if head is None else paired_difference(correct, head, groups, settings)
    facts = [axis, curve, x, value.value, value.low, value.high, value.n, value.clusters, value.seeds]
    facts += [float((correct == 0.5).mean()), *((gap.value, gap.low, gap.high) if gap else (None, None, None))]
    return dict(zip(COLUMNS, facts, strict=True))
