"""Table 3: win rates of DPO policies against a reference, as arithmetic on a judge's annotations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.alpaca_files import read_annotations
from shallow_signals.evaluation.alpacaeval import WinRate, in_percent, win_rate, win_scores
from shallow_signals.evaluation.length_control import LengthControlled, lc_difference, length_controlled
from shallow_signals.evaluation.regulariser import regulariser_of
from shallow_signals.evaluation.statistics import DEFAULTS, Estimate, comparable, paired_difference
from shallow_signals.files import InputError
from shallow_signals.paper.layout import Cell, Row, Table, in_order, label_of, marked

if TYPE_CHECKING:
    import pandas as pd

BASE, FULL = "base", "full"
DIGITS = 2  # of percentages, as the paper prints them
NOT_RUN = "not part of this comparison"


@dataclass(frozen=True)
class Judged:
    """One column of a comparison."""

    annotations: pd.DataFrame
    rate: WinRate
    controlled: LengthControlled
    seeds: tuple[int, ...]  # of the policy's training; empty for the base model


def table3(comparisons: Sequence[Mapping[str, Any]], settings: Statistics = DEFAULTS) -> Table:
    """Length-controlled and raw win rates by the training data's truncation, the base model first.

    `comparisons` hold `label`, `annotations` (`base` or a truncation -> path, rows in the same order everywhere),
    `length_control` (`gamed`, `difficulty` -> path, where there is one), `seeds` (truncation -> the policy's) and, for
    the caption, `judge`, `instructions`, `against` (`stored` or `base`) and `base` (the base model's label).
    Differences to `full` are paired by instruction. Without a comparison there is no table: `InputError`.
    """
    if not comparisons:
        raise InputError("tables.table3: names no comparison of `alpacaeval`")
    read = [_read(row, settings) for row in comparisons]
    names = {name for found in read for name in found}
    bases = {row["base"] for row in comparisons}
    columns = [(BASE, bases.pop() if len(bases) == 1 else "Base model")] if BASE in names else []
    columns += [(name, label_of(name)) for name in in_order(names - {BASE})]
    rows: list[Row] = []
    for row, found in zip(comparisons, read, strict=True):
        rows += _rows(row["label"], [name for name, _ in columns], found, settings)
    caption = " ".join(
        ["Win rates, in percent, of models trained with DPO on truncated responses.", *map(_setting, comparisons, read)]
    )
    return Table(
        "table3",
        caption,
        ("Dataset", "Metric"),
        tuple(columns),
        tuple(rows),
        _notes(read, settings),
        DIGITS,
        "Instructions",
    )


def _read(row: Mapping[str, Any], settings: Statistics) -> dict[str, Judged]:
    """Annotations and numbers of a comparison's members."""
    frames = {member: read_annotations(Path(path)) for member, path in row["annotations"].items()}
    instructions = [list(frame["instruction"]) for frame in frames.values()]
    if any(texts != instructions[0] for texts in instructions):
        raise InputError(f"{row['label']}: the members' annotations are not of the same instructions in the same order")
    files = {part: Path(path) for part, path in row["length_control"].items()}
    regulariser = regulariser_of(instructions[0], files.get("gamed"), files.get("difficulty"))
    found = {}
    for member, frame in frames.items():
        seeds = () if member == BASE else (int(row["seeds"][member]),)
        controlled = length_controlled(frame, regulariser, settings)
        found[member] = Judged(frame, win_rate(frame, settings), controlled, seeds)
    return found


def _rows(label: str, columns: Sequence[str], found: Mapping[str, Judged], settings: Statistics) -> Iterable[Row]:
    """The comparison's lines: both win rates, how long the outputs are, and whether the fit came to its end."""
    full = found.get(FULL)
    lines = {
        next(iter(found.values())).controlled.name: _controlled_cell,
        "Win rate": _rate_cell,
        "Length ratio (medians)": _ratio_cell,
        "LC fit converged": _converged_cell,
    }
    for name, make in lines.items():
        cells = [
            make(found[column], full if column != FULL else None, settings) if column in found else Cell(note=NOT_RUN)
            for column in columns
        ]
        yield Row(label, name, marked(cells, DIGITS) if make in (_controlled_cell, _rate_cell) else tuple(cells))


def _controlled_cell(judged: Judged, full: Judged | None, settings: Statistics) -> Cell:
    controlled = judged.controlled
    if math.isnan(controlled.estimate.value):
        return Cell(note="; ".join(controlled.notes))
    notes = []
    if controlled.lengths.one_sided:
        notes.append("nearly all outputs are longer, or shorter, than the reference's: an extrapolation")
    if controlled.extreme:
        notes.append("very different from the raw win rate")
    difference = None if full is None else lc_difference(controlled, full.controlled, settings)
    return _cell(judged, controlled.estimate, difference, settings, "; ".join(notes))


def _rate_cell(judged: Judged, full: Judged | None, settings: Statistics) -> Cell:
    unjudged = f"{judged.rate.unjudged} instructions not judged" if judged.rate.unjudged else ""
    if full is None:
        return _cell(judged, judged.rate.win_rate, None, settings, unjudged)
    own, other = win_scores(judged.annotations), win_scores(full.annotations)
    both = ~(np.isnan(own) | np.isnan(other))
    if not both.any():
        return _cell(judged, judged.rate.win_rate, None, settings, unjudged)
    difference = paired_difference(own[both], other[both], judged.annotations["instruction"][both], settings)
    left_out = judged.rate.n + full.rate.n - 2 * int(both.sum())
    return _cell(judged, judged.rate.win_rate, in_percent(difference), settings, unjudged, left_out)


def _cell(
    judged: Judged,
    estimate: Estimate,
    difference: Estimate | None,
    settings: Statistics,
    note: str = "",
    left_out: int = 0,
) -> Cell:
    verdict = None if difference is None else comparable(difference, 100 * settings.comparable_margin)
    return Cell(estimate, difference, verdict, judged.seeds, left_out=left_out, note=note)


def _ratio_cell(judged: Judged, full: Judged | None, settings: Statistics) -> Cell:
    ratio, rows = judged.controlled.lengths.median_ratio, len(judged.annotations)
    if math.isnan(ratio):
        return Cell(note="the reference's median output is empty")
    clusters = judged.annotations["instruction"].nunique()
    return Cell(Estimate(ratio, math.nan, math.nan, rows, clusters, "median characters over the reference's"))


def _converged_cell(judged: Judged, full: Judged | None, settings: Statistics) -> Cell:
    controlled = judged.controlled
    if math.isnan(controlled.estimate.value):
        return Cell(note="; ".join(controlled.notes))
    return Cell(text="yes" if controlled.converged else "no", note="; ".join(controlled.notes))


def _setting(row: Mapping[str, Any], found: Mapping[str, Judged]) -> str:
    """Who judged whom against what: a number is never called by another's name."""
    first = next(iter(found.values())).annotations
    if row["against"] == "base":
        against = f"the base model's own outputs ({row['base']}), of which its column is a second sample"
    else:
        against = f"the stored outputs of {first['generator_1'].iloc[0]}"
    size = f"{len(first)} instructions of {row['instructions']}"
    return f"{row['label']}: judged by {row['judge']} against {against}; {size}."


def _notes(read: Sequence[Mapping[str, Judged]], settings: Statistics) -> tuple[str, ...]:
    members = [judged for found in read for judged in found.values()]
    notes = [f"Brackets: {settings.confidence:.0%} interval over instructions."]
    if any(judged.controlled.approximate for judged in members):
        notes.append(
            "Stand-in regulariser: rebuilt from published weights, so the LC win rate is not AlpacaEval's number."
        )
    notes.append(f"Comparable: the interval of the difference lies above -{100 * settings.comparable_margin:g} points.")
    return tuple(notes)
