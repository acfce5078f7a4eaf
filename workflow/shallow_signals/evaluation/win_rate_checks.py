"""Win rates held against what they must be in the planted world, whose judge is the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from shallow_signals.evaluation.alpaca_files import read_annotations
from shallow_signals.evaluation.alpacaeval import win_scores
from shallow_signals.evaluation.checks import ALPHA, Check
from shallow_signals.evaluation.statistics import binomial_interval

HALF = 0.5


def win_rate_checks(comparisons: Iterable[Mapping[str, Any]]) -> list[Check]:
    """The two checks of each comparison whose reference is the base model.

    `comparisons` hold `comparison` (its name) and `annotations` (member -> path), of which `full` and `base` are read.
    """
    checks = []
    for row in comparisons:
        full, base = (read_annotations(Path(row["annotations"][member])) for member in ("full", "base"))
        checks += [improves(row["comparison"], full), is_even(row["comparison"], base)]
    return checks


def improves(comparison: str, annotations: pd.DataFrame) -> Check:
    """The policy trained on full responses beats its reference more often than not, beyond chance."""
    return _check("dpo", comparison, "full", annotations, lambda low, high: low > HALF)


def is_even(comparison: str, annotations: pd.DataFrame) -> Check:
    """A second sample of the base model is as good as the first."""
    return _check("even", comparison, "base", annotations, lambda low, high: low <= HALF <= high)


def _check(
    check: str, comparison: str, member: str, annotations: pd.DataFrame, passes: Callable[[float, float], bool]
) -> Check:
    """The share of wins among comparisons that the judge decided, with an exact interval (the sign test's)."""
    scores = win_scores(annotations)
    wins, decided = int((scores > HALF).sum()), int(((scores > HALF) | (scores < HALF)).sum())
    low, high = binomial_interval(wins, decided, 1 - ALPHA) if decided else (0.0, 1.0)
    return Check(
        check=check,
        experiment=comparison,
        truncation=member,
        test="decided comparisons",
        seed=None,
        n=decided,
        measured=wins / decided if decided else float("nan"),
        low=low,
        high=high,
        truth=HALF,
        p=float("nan"),
        passes=passes(low, high),
    )
