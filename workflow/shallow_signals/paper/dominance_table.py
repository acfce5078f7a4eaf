"""The table beside Figure 4: each control against mixing at its KL, and mixing against policies trained again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.dominance import Against
from shallow_signals.files import write_text
from shallow_signals.paper.render import DASH, escape

COLUMNS = ["label", "kind", "strategy", "against", "quantity", "kl", "value", "baseline", "difference", "low", "high"]
COLUMNS += ["prompts", "verdict", "method"]
_HEADS = ("Decoding", "Strategy", "KL (nats)", "Against", "Of", "Value", "Mixing's", "Difference", "Verdict")


def write_dominance(found: Mapping[str, Sequence[Against]], settings: Statistics, stem: Path) -> None:
    """Write `{stem}.csv` (keys `COLUMNS`, a line a comparison), `.md`, `.tex`; `found` is by the decoding's label."""
    rows = [_row(label, against) for label, line in found.items() for against in line]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    write_text(stem.with_suffix(".csv"), frame.to_csv(index=False))
    notes = _notes(rows, settings)
    write_text(stem.with_suffix(".md"), _markdown(rows, notes))
    write_text(stem.with_suffix(".tex"), _latex(rows, notes))


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


def _cells(row: Mapping[str, Any]) -> list[str]:
    def number(value: Any, sign: str = "") -> str:
        return DASH if value is None or math.isnan(value) else f"{value:{sign}.3f}"

    gap = number(row["difference"], "+")
    if gap != DASH and not math.isnan(row["low"]):
        gap += f" [{row['low']:+.3f}, {row['high']:+.3f}]"
    middle = [row["against"], row["quantity"], number(row["value"]), number(row["baseline"])]
    return [row["label"], row["strategy"], number(row["kl"]), *middle, gap, row["verdict"]]


def _markdown(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    lines = ["## Dominance", "", "| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row)) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def _latex(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    body = [" & ".join(map(escape, _cells(row))) + r" \\" for row in rows]
    lines = [
        r"% needs: \usepackage{booktabs} \usepackage{graphicx}",
        r"\begin{table}",
        r"\centering",
        r"\resizebox{\textwidth}{!}{%",
        r"\begin{tabular}{llrllrrrl}",
        r"\toprule",
        " & ".join(map(escape, _HEADS)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\caption{Controlled decoding against mixing. " + " ".join(map(escape, notes)) + "}",
        r"\label{tab:dominance}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
