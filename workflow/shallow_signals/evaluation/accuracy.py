"""From score tables, one per seed, to accuracies: a pair is right when chosen scores strictly above rejected."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.statistics import (
    DEFAULTS,
    UNIT,
    Estimate,
    Floats,
    cluster_bootstrap_mean,
    mcnemar,
    paired_difference,
)
from shallow_signals.files import InputError, read_parquet

COLUMNS = ["pair_id", "cluster", "subset", "test", "chosen", "rejected", "chosen_length", "rejected_length"]
_CUT = re.compile(r"cut([0-9]+)")


@dataclass(frozen=True)
class Outcomes:
    """What one model, trained with several seeds, gets right on one test; rows are the pairs that all seeds scored."""

    pair_ids: NDArray[np.str_]  # [n], sorted
    clusters: NDArray[np.str_]  # [n]
    subsets: NDArray[np.str_]  # [n], empty where the data has none
    correct: Floats  # [seeds, n]: 1 where chosen scores strictly above rejected, else 0
    ties: NDArray[np.bool_]  # [seeds, n]: equal scores, counted as wrong
    longer: Floats  # [n]: 1 where chosen is the longer one, 0 the shorter one, .5 as long (kept tokens)
    seeds: tuple[int, ...]
    left_out: int = 0  # pairs that some seed, or the other side of a comparison, has no score for

    @property
    def n(self) -> int:
        """Number of pairs."""
        return int(self.pair_ids.size)

    def take(self, rows: NDArray[Any]) -> Self:
        """The same outcomes on some of the pairs; `rows` are a mask or positions."""
        picked = {name: getattr(self, name)[rows] for name in ("pair_ids", "clusters", "subsets", "longer")}
        return replace(self, **picked, correct=self.correct[:, rows], ties=self.ties[:, rows])


@dataclass(frozen=True)
class Comparison:
    """A paired difference in accuracy, on the pairs that both sides scored."""

    difference: Estimate
    left_out: int  # pairs that only one side scored (collapsed at the other's cut)
    mcnemar_p: float | None  # only where each pair is its own cluster and both sides have one seed


def read_scores(path: Path) -> pa.Table:
    """A score table; an unreadable file or a missing column is an `InputError` that names it."""
    return read_parquet(path, COLUMNS)


def tests_of(tables: Mapping[int, pa.Table]) -> list[str]:
    """Names of the tests that all seeds' tables hold, sorted."""
    return sorted(set.intersection(*(set(table["test"].unique().to_pylist()) for table in tables.values())))


def outcomes(tables: Mapping[int, pa.Table], test: str, where: str = "scores") -> Outcomes:
    """Outcomes of one model on `test` ("full", "kept", "cut05" ...); `tables` maps seeds to score tables.

    Raises `InputError` for a test without rows, a pair scored twice and a score that is no number; `where` names the
    source in the message.
    """
    if not tables:
        raise InputError(f"{where}: no score table")
    parts = {seed: _rows(table, test, f"{where}, seed {seed}") for seed, table in sorted(tables.items())}
    ids = [set(part["pair_id"]) for part in parts.values()]
    shared = np.array(sorted(set.intersection(*ids)), dtype=np.str_)
    if shared.size == 0:
        raise InputError(f"{where}: the seeds' score tables share no pair on test '{test}'")
    aligned = [_aligned(part, shared) for part in parts.values()]
    chosen = np.array([part["chosen"] for part in aligned])
    rejected = np.array([part["rejected"] for part in aligned])
    first = aligned[0]
    return Outcomes(
        pair_ids=shared,
        clusters=first["cluster"],
        subsets=first["subset"],
        correct=(chosen > rejected).astype(np.float64),
        ties=chosen == rejected,
        longer=(1 + np.sign(first["chosen_length"] - first["rejected_length"])) / 2,
        seeds=tuple(parts),
        left_out=len(set.union(*ids)) - shared.size,
    )


def _rows(table: pa.Table, test: str, where: str) -> dict[str, NDArray[Any]]:
    table = table.filter(pc.equal(table["test"], test))
    if table.num_rows == 0:
        raise InputError(f"{where}: no row of test '{test}'")
    text = {name: _strings(table[name].to_pylist()) for name in ("pair_id", "cluster", "subset")}
    numbers = {name: table[name].to_numpy() for name in ("chosen", "rejected", "chosen_length", "rejected_length")}
    if np.unique(text["pair_id"]).size != table.num_rows:
        raise InputError(f"{where}: test '{test}' holds a pair_id twice")
    if not (np.isfinite(numbers["chosen"]).all() and np.isfinite(numbers["rejected"]).all()):
        raise InputError(f"{where}: test '{test}' holds a score that is missing, NaN or infinite; score it again")
    lengths = {name: numbers[name].astype(np.int64) for name in ("chosen_length", "rejected_length")}
    return {**text, **numbers, **lengths}


def _aligned(part: dict[str, NDArray[Any]], ids: NDArray[np.str_]) -> dict[str, NDArray[Any]]:
    order = np.argsort(part["pair_id"])
    rows = order[np.searchsorted(part["pair_id"], ids, sorter=order)]
    return {name: column[rows] for name, column in part.items()}


def _strings(values: list[str | None]) -> NDArray[np.str_]:
    return np.array(["" if value is None else value for value in values], dtype=np.str_)


def accuracy(found: Outcomes, settings: Statistics = DEFAULTS) -> Estimate:
    """The share of pairs ranked right (a tie is wrong), mean over seeds, with one interval over seeds and clusters."""
    return cluster_bootstrap_mean(found.correct, found.clusters, settings, bounds=UNIT)


def length_baseline(found: Outcomes, settings: Statistics = DEFAULTS) -> Estimate:
    """The accuracy of "the longer one wins" (kept tokens), pairs of equal length counting one half."""
    return cluster_bootstrap_mean(found.longer, found.clusters, settings, bounds=UNIT)


def curve(tables: Mapping[int, pa.Table], settings: Statistics = DEFAULTS) -> dict[int, Estimate]:
    """Accuracy of one model read at every cut: percentage kept to estimate, ascending; 100 is the test "full"."""
    points = {100: "full"} if "full" in tests_of(tables) else {}
    points |= {int(match[1]): match[0] for test in tests_of(tables) if (match := _CUT.fullmatch(test))}
    return {cut: accuracy(outcomes(tables, test), settings) for cut, test in sorted(points.items())}


def on_same_pairs(a: Outcomes, b: Outcomes) -> tuple[Outcomes, Outcomes, int]:
    """Both restricted to the pairs that both hold, and how many pairs only one of them holds."""
    shared, rows_a, rows_b = np.intersect1d(a.pair_ids, b.pair_ids, assume_unique=True, return_indices=True)
    if shared.size == 0:
        raise InputError("the two score tables share no pair: nothing to compare")
    return a.take(rows_a), b.take(rows_b), a.n + b.n - 2 * int(shared.size)


def compare(
    a: Outcomes,
    b: Outcomes,
    settings: Statistics = DEFAULTS,
    *,
    strata: NDArray[np.str_] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Comparison:
    """Accuracy of `a` minus accuracy of `b` on the same pairs; runs of equal seeds are paired.

    `strata` (a label per pair of the shared pairs, in the order of their ids) and `weights` as in
    `statistics.cluster_bootstrap_mean`.
    """
    a, b, left_out = on_same_pairs(a, b)
    difference = paired_difference(
        a.correct,
        b.correct,
        a.clusters,
        settings,
        seeds="paired" if a.seeds == b.seeds else "independent",
        strata=strata,
        weights=weights,
    )
    lone = len(a.seeds) == len(b.seeds) == 1 and np.unique(a.clusters).size == a.n
    p_value = mcnemar(a.correct[0] > 0, b.correct[0] > 0)[2] if lone else None
    return Comparison(difference, left_out, p_value)


def join(parts: Mapping[str, Outcomes]) -> Outcomes:
    """Several test sets as one, the set's name in `subsets`; the runs are those of the seeds that all of them have.

    A cluster that occurs in several sets (one prompt judged by several aspects) stays one cluster.
    """
    seeds = tuple(sorted(set.intersection(*(set(part.seeds) for part in parts.values()))))
    if not seeds:
        raise InputError(f"{', '.join(parts)}: no seed in common")
    rows = [[part.seeds.index(seed) for seed in seeds] for part in parts.values()]
    chosen = list(zip(parts.items(), rows, strict=True))
    return Outcomes(
        pair_ids=np.concatenate([[f"{name}/{pair}" for pair in part.pair_ids] for name, part in parts.items()]),
        clusters=np.concatenate([part.clusters for part in parts.values()]),
        subsets=np.concatenate([np.full(part.n, name) for name, part in parts.items()]),
        correct=np.concatenate([part.correct[runs] for (_, part), runs in chosen], axis=1),
        ties=np.concatenate([part.ties[runs] for (_, part), runs in chosen], axis=1),
        longer=np.concatenate([part.longer for part in parts.values()]),
        seeds=seeds,
        left_out=sum(part.left_out for part in parts.values()),
    )


def by_seed(found: Outcomes) -> tuple[float, ...]:
    """The accuracy of each run, in the order of `found.seeds`."""
    return tuple(math.fsum(run) / found.n for run in found.correct)
