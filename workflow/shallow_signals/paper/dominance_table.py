"""The table beside Figure 4: each control against mixing at its KL, and mixing against policies trained again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.dominance import Against
from shallow_signals.evaluation.statistics import Estimate
from shallow_signals.files import write_text
from shallow_signals.paper.layout import Cell, Row, Table
from shallow_signals.paper.render import DASH, to_latex, to_markdown

COLUMNS = ["label", "kind", "strategy", "against", "quantity", "kl", "value", "baseline", "difference", "low", "high"]
COLUMNS += ["prompts", "verdict", "method"]
_HEADS = (
    ("kl", "KL (nats)"),
    ("against", "Against"),
    ("quantity", "Of"),
    ("value", "Value"),
    ("baseline", "Mixing's"),
    ("difference", "Difference"),
    ("verdict", "Verdict"),
)


def write_dominance(found: Mapping[str, Sequence[Against]], settings: Statistics, stem: Path) -> None:
    """Write `{stem}.csv` (keys `COLUMNS`, a line a comparison), `.md`, `.tex`; `found` is by the decoding's label."""
    rows = [_row(label, against) for label, line in found.items() for against in line]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    write_text(stem.with_suffix(".csv"), frame.to_csv(index=False))
    gaps = [against.difference for line in found.values() for against in line]
    table = _table(rows, gaps, _notes(rows, settings))
    write_text(stem.with_suffix(".md"), to_markdown(table))
    write_text(stem.with_suffix(".tex"), to_latex(table))


def _row(label: str, against: Against) -> dict[str, Any]:
    gap = against.difference
    facts: list[Any] = [label, against.kind, against.name, against.against, against.quantity, against.kl, against.value]
    facts += [against.baseline, *((gap.value, gap.low, gap.high, gap.n) if gap else (None,) * 4)]
    return dict(zip(COLUMNS, [*facts, against.place, gap.method if gap else ""], strict=True))


def _notes(rows: Iterable[Mapping[str, Any]], settings: Statistics) -> list[str]:
    rows = list(rows)
    counts = dict.fromkeys(("above", "below", "undecided", "outside"), 0)
    for row in rows:
        counts[row["verdict"]] += row["kind"] == "control"
    said = ", ".join(f"{number} {place}" for place, number in counts.items() if number)
    return [
        f"Brackets: pointwise {settings.confidence:.0%} intervals over prompts, not corrected for their number; both "
        "sides answer the same prompts from the same random numbers. They speak of these two models.",
        "Above, below: the whole interval is. Outside: mixing does not reach this KL, and nothing is extrapolated. "
        f"Controls against mixing at the same KL: {said or 'none'}.",
    ]


def _table(rows: Sequence[Mapping[str, Any]], gaps: Sequence[Estimate | None], notes: Sequence[str]) -> Table:
    def number(value: float) -> Cell:
        return Cell(text=DASH if math.isnan(value) else f"{value:.3f}")

    lines = [
        Row(
            row["label"],
            row["strategy"],
            (
                number(row["kl"]),
                Cell(text=row["against"]),
                Cell(text=row["quantity"]),
                number(row["value"]),
                number(row["baseline"]),
                Cell(gap) if gap else Cell(text=DASH),
                Cell(text=row["verdict"]),
            ),
        )
        for row, gap in zip(rows, gaps, strict=True)
    ]
    caption = "Controlled decoding against mixing."
    return Table("dominance", caption, ("Decoding", "Strategy"), _HEADS, tuple(lines), tuple(notes), unit="Prompts")
