"""The folds of the probe: tested are pairs of clusters (and, where asked, of generators) that training has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shallow_signals.config.probe import Probe
from shallow_signals.data.pairs import uniform_hash
from shallow_signals.files import InputError

Split = Literal["plain", "generators_held_out"]
Rows = NDArray[np.intp]

MIN_TRAIN = 20  # pairs


@dataclass(frozen=True)
class Fold:
    """Row numbers of one fold."""

    train: Rows
    test: Rows


def assign_folds(groups: Sequence[str], folds: int, seed: int) -> Rows:
    """The fold of each row, [n]: a group lies in one fold, folds hold about equally many rows.

    The largest groups come first, each to the lightest fold; groups of one size in the order of a hash of their name
    and the seed, so that the rows' order does not matter.
    """
    names, codes, sizes = np.unique(np.asarray(groups, dtype=object), return_inverse=True, return_counts=True)
    order = sorted(range(len(names)), key=lambda g: (-sizes[g], uniform_hash("fold", seed, str(names[g]))))
    fold_of = np.zeros(len(names), dtype=np.intp)
    load = [0] * folds
    for group in order:
        fold_of[group] = load.index(min(load))
        load[fold_of[group]] += int(sizes[group])
    return np.asarray(fold_of[codes])


def make_splits(table: pd.DataFrame, probe: Probe) -> dict[Split, list[Fold]]:
    """The folds of each split of `table` (columns cluster, generator); `InputError` where there can be none."""
    prompts = _checked_folds(table, "cluster", probe)
    numbers = range(probe.folds)
    splits: dict[Split, list[Fold]] = {
        "plain": [Fold(np.flatnonzero(prompts != k), np.flatnonzero(prompts == k)) for k in numbers]
    }
    if probe.hold_out_generators:
        if table["generator"].isna().any():
            raise InputError(
                f"{probe.dataset}: pairs without a generator; name its column in columns.generator of the data set, "
                "or set hold_out_generators of the probe to false"
            )
        writers = _checked_folds(table, "generator", probe)
        splits["generators_held_out"] = [
            Fold(
                np.flatnonzero((prompts != k) & (writers != k)),
                np.flatnonzero((prompts == k) & (writers == k)),
            )
            for k in numbers
        ]
    for folds in splits.values():
        if any(len(fold.train) < MIN_TRAIN or not len(fold.test) for fold in folds):
            raise InputError(
                f"{probe.dataset}: {len(table)} pairs are too few for folds: {probe.folds} with {MIN_TRAIN} pairs to "
                "train on and one to test; give it more pairs or set fewer folds"
            )
    return splits


def _checked_folds(table: pd.DataFrame, column: str, probe: Probe) -> Rows:
    groups = table[column].tolist()
    if len(set(groups)) < probe.folds:
        raise InputError(
            f"{probe.dataset}: {len(set(groups))} different values of '{column}' can't fill {probe.folds} folds; "
            "set folds of the probe to at most that"
        )
    return assign_folds(groups, probe.folds, probe.seed)


def tested_rows(folds: list[Fold]) -> Rows:
    """The rows that some fold tests, in order."""
    return np.sort(np.concatenate([fold.test for fold in folds]))
