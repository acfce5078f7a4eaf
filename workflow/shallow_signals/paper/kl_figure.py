"""Figure 3: KL between policy and reference by position, with the texts that are still going below it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from shallow_signals.paper.gather import read_gathered
from shallow_signals.paper.style import GREY, PAGE, PALETTE, band, figure, legend, save

LOOKS = {
    "own": (PALETTE[0], "policy's own samples"),
    "chosen": (PALETTE[2], "chosen responses"),
    "rejected": (PALETTE[1], "rejected responses"),
    "continued": (PALETTE[3], "policy, after the beginning of a chosen one"),
}
_NEEDED = {"label", "text", "axis", "position", "kl", "low", "high", "clusters", "live"}
_FEW = 0.1  # share of the texts below which a curve is not drawn: it would be a few long texts


def draw_kl(table: Path, outputs: Sequence[Path]) -> None:
    """Draw the gathered rows of `evaluation.kl_by_position`: means over blocks of tokens, a column for each label.

    Raises `InputError` for a table that lacks a column.
    """
    frame = read_gathered(table, _NEEDED)
    labels = list(dict.fromkeys(frame["label"]))
    with figure(2, len(labels), width=PAGE, height=3.8, height_ratios=[3, 1]) as (made, axes):
        for number, label in enumerate(labels):
            _column(axes[0][number], axes[1][number], frame[frame["label"] == label], label)
        axes[0][0].set_ylabel("KL(policy || reference), nats")
        axes[1][0].set_ylabel("texts")
        legend(made, axes[0], 3)
        save(made, outputs)


def _column(upper: Axes, lower: Axes, part: pd.DataFrame, label: str) -> None:
    for text, (colour, name) in LOOKS.items():
        rows = part[part["text"] == text]
        fine, coarse = (rows[rows["axis"] == axis].sort_values("position") for axis in ("position", "block"))
        if fine.empty:
            continue
        fine_shown, shown = (curve[curve["live"] >= _FEW * curve["live"].max()] for curve in (fine, coarse))
        bounds = (shown["kl"].tolist(), shown["low"].tolist(), shown["high"].tolist())
        band(upper, shown["position"].tolist(), bounds, colour=colour, label=name)
        lower.step(fine["position"], fine["live"], color=colour, where="mid", linewidth=1.0)
        if text == "own":
            upper.plot(
                fine_shown["position"], fine_shown["kl"], color=colour, linewidth=0.5, alpha=0.6, label="token by token"
            )  # fmt: skip
            for floor in rows[rows["axis"] == "last_third"]["kl"]:
                upper.axhline(floor, color=GREY, linewidth=0.8, linestyle=":", label="floor: mean of its last thirds")
    upper.set_ylim(bottom=0)
    upper.set_title(label, loc="left")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("token of the response")
    lower.sharex(upper)
