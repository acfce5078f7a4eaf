"""What a table is made of, and the words and order of its columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shallow_signals.config.truncation import parse
from shallow_signals.evaluation.statistics import MIN_SEEDS, Estimate, Verdict

DIGITS = 4  # of a printed score, as in the paper; best and second best are told apart at this precision


@dataclass(frozen=True)
class Cell:
    """One number with everything that is needed to judge it; without an estimate, `note` says why there is none."""

    estimate: Estimate | None = None
    difference: Estimate | None = None  # to the model trained on full responses, on the pairs that both scored
    verdict: Verdict | None = None  # whether `difference` is comparable to none
    seeds: tuple[int, ...] = ()  # of the models behind it; empty where there is no model
    by_seed: tuple[float, ...] = ()
    ties: int = 0  # equal scores, over all seeds; counted as wrong
    left_out: int = 0  # pairs that only one side of the difference scored
    note: str = ""
    mark: Literal["", "best", "second"] = ""
    text: str = ""  # what stands in the place of a number


@dataclass(frozen=True)
class Row:
    """One line: a group (a data set, an aspect), a label within it, and a cell per column of the table."""

    group: str
    label: str
    cells: tuple[Cell, ...]
    test: str = "full"  # what the models were tested on
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table ready to be written; `columns` are (name, label), `stub` heads the group and label columns."""

    name: str
    caption: str
    stub: tuple[str, str]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    digits: int = DIGITS  # behind the point of a printed number; its interval has one less
    unit: str = "Pairs"  # what n counts


def scope(cell: Cell) -> str:
    """What a cell speaks of when the seeds behind it are too few to speak of the model; else empty."""
    if cell.estimate is None or not cell.seeds or cell.estimate.seeds >= MIN_SEEDS:
        return ""
    runs = "this run" if cell.estimate.seeds == 1 else f"these {cell.estimate.seeds} runs"
    return f"{runs}: the interval is over clusters only"


def computed(value: float) -> Cell:
    """A number without sampling error."""
    return Cell(Estimate(value, float("nan"), float("nan"), 0, 0, "computed from the world"))


def marked(cells: Sequence[Cell], digits: int = DIGITS) -> tuple[Cell, ...]:
    """The cells with the highest value marked best and the next lower one second; equal printed values share a mark."""
    printed = [None if cell.estimate is None else round(cell.estimate.value, digits) for cell in cells]
    ranked = sorted({value for value in printed if value is not None}, reverse=True)
    if sum(value is not None for value in printed) < 2:
        return tuple(cells)
    marks: dict[float | None, Literal["", "best", "second"]] = {ranked[0]: "best"}
    if len(ranked) > 1:
        marks[ranked[1]] = "second"
    return tuple(replace(cell, mark=marks.get(value, "")) for cell, value in zip(cells, printed, strict=True))


def in_order(names: Iterable[str]) -> list[str]:
    """Truncations as columns: full, shrinking heads, then the controls."""
    return sorted(set(names), key=_rank)


def _rank(name: str) -> tuple[int, int, float, str]:
    cut = parse(name)
    if cut.kind == "full":
        return 0, 0, 0.0, name
    if cut.kind == "cut":
        side = {"head": 1, "tail": 2, "window": 3}[cut.side]
        form = 2 * (cut.length is not None) + (cut.unit == "char")
        return side, form, -float(cut.ratio or cut.length or 0), name
    order = {"min_length": 4, "pairs": 5, "half": 6, "topshare": 7, "shuffled": 8}
    return order[cut.kind], 0, -float(cut.ratio or 0), name


def label_of(name: str) -> str:
    """A truncation as a column's head: "Original Dataset" and "50%" as the paper prints them, controls by name."""
    cut = parse(name)
    if cut.kind == "full":
        return "Original Dataset"
    if cut.kind == "cut":
        unit = "character" if cut.unit == "char" else "token"
        if cut.length is not None:
            size = f"{cut.length} {unit}s"
        else:
            size = f"{float(cut.ratio or 0):.0%}" + (" of characters" if unit == "character" else "")
        return size if cut.side == "head" else f"{cut.side} {size}"
    share = f"{float(cut.ratio or 0):.0%}"
    return {
        "min_length": "shorter's length",
        "pairs": f"fewer pairs ({share})",
        "half": f"half of the pairs ({cut.number})",
        "topshare": f"largest log-ratios ({share})",
        "shuffled": f"shuffled labels {cut.number}",
    }[cut.kind]
