"""Arithmetic on the numbers that the paper prints: what they must satisfy if they are what the captions say."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from importlib import resources
from typing import Literal

SECTIONS = ("Chat", "Chat-Hard", "Safety", "Reasoning")
GRIM_ROWS = {"Chat": 358, "Chat-Hard": 456}  # sections whose score is a plain share k / n (no reweighted subset)


@dataclass(frozen=True)
class Printed:
    """One printed cell; `value` keeps the digits as printed (a share in Tables 1, 2 and 4, percent in Table 3)."""

    dataset: str
    dimension: str
    truncation: str  # `base` in Table 3: the model before training
    value: Decimal


def load_published(table: Literal["table1", "table2", "table3", "table4"]) -> list[Printed]:
    """The cells of one of the paper's tables, in printed order (rows, then columns)."""
    text = resources.files(__package__).joinpath("published", f"{table}.csv").read_text(encoding="utf-8")
    return [
        Printed(row["dataset"], row["dimension"], row["truncation"], Decimal(row["value"]))
        for row in csv.DictReader(text.splitlines())
    ]


def recomputed(cells: list[Printed], dataset: str, truncation: str, summary: str) -> tuple[Decimal, Decimal]:
    """The printed summary of one column (`summary`: Total, Average) and the plain mean of the column's other cells."""
    column = {c.dimension: c.value for c in cells if (c.dataset, c.truncation) == (dataset, truncation)}
    printed = column.pop(summary)
    return printed, sum(column.values(), Decimal(0)) / len(column)


def attainable(value: Decimal, n: int, *, truncated: bool = False) -> bool:
    """GRIM: whether some share k / n is printed as `value` when rounded half up (or cut off) to its digits."""
    unit = Decimal(1).scaleb(int(value.as_tuple().exponent))
    rounding = ROUND_FLOOR if truncated else ROUND_HALF_UP
    near = int(value * n)
    return any((Decimal(k) / n).quantize(unit, rounding) == value for k in range(max(near - 1, 0), near + 3))
