"""Accuracy of every reward model at every cut, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.accuracy import curve, read_scores

COLUMNS = [
    "experiment",
    "label",
    "test_set",
    "truncation",
    "kept_percent",
    "accuracy",
    "low",
    "high",
    "n",
    "clusters",
    "seeds",
]


def reward_by_cut(rows: Sequence[Mapping[str, Any]], settings: Statistics) -> Iterator[dict[str, Any]]:
    """One dictionary (keys `COLUMNS`) per experiment, test set, truncation and cut.

    `rows` hold `experiment`, `label` and `scores`: test set -> truncation -> seed -> path of a score table.
    """
    for row in rows:
        for test_set, by_truncation in row["scores"].items():
            for truncation, paths in by_truncation.items():
                tables = {int(seed): read_scores(Path(path)) for seed, path in paths.items()}
                for cut, found in curve(tables, settings).items():
                    facts = (found.value, found.low, found.high, found.n, found.clusters, found.seeds)
                    line = (row["experiment"], row["label"], test_set, truncation, cut, *facts)
                    yield dict(zip(COLUMNS, line, strict=True))
