"""Figure 4: reward against KL for the mixing baseline and both controls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from shallow_signals.evaluation.tradeoff import COLUMNS
from shallow_signals.paper.gather import read_gathered
from shallow_signals.paper.style import GREY, PAGE, figure, legend, save

# Colours and markers are the paper's: blue dots, red triangles, green squares.
LOOKS = {
    "mixing": ("#0072B2", "o", "mixing (a)"),
    "length": ("#C22F2F", "^", "length control (t)"),
    "threshold": ("#1E8449", "s", "KL threshold (b)"),
    "retrained": ("#222222", "x", "DPO trained at beta/a"),
}
ENDS = {"reference": "reference", "policy": "policy"}


def draw_tradeoff(table: Path, outputs: Sequence[Path]) -> None:
    """Draw a table of `evaluation.tradeoff.point_row`s, a panel for each label; `InputError` for a missing column."""
    frame = read_gathered(table, COLUMNS)
    labels = list(dict.fromkeys(frame["label"]))
    with figure(1, len(labels), width=PAGE, height=3.2) as (made, axes):
        for panel, label in zip(axes[0], labels, strict=True):
            _panel(panel, frame[frame["label"] == label], label)
        axes[0][0].set_ylabel("reward")
        legend(made, axes[0], 5)
        save(made, outputs)


def _panel(axes: Axes, part: pd.DataFrame, label: str) -> None:
    ends = part[part["kind"].isin(ENDS)]
    baseline = pd.concat([part[part["kind"] == "mixing"], ends]).sort_values("kl")
    axes.plot(baseline["kl"], baseline["reward"], color=LOOKS["mixing"][0], linewidth=0.8, alpha=0.6)
    for kind, (colour, marker, name) in LOOKS.items():
        rows = part[part["kind"] == kind].sort_values("parameter")
        if not rows.empty:
            _points(axes, rows, colour, marker, name)
    for kind, name in ENDS.items():
        rows = ends[ends["kind"] == kind]
        if not rows.empty:
            _points(axes, rows, GREY, "D", "reference, policy")
            _say(axes, rows.iloc[0], name, (4, -9), GREY)
    for _, row in part[part["kind"] == "retrained"].iterrows():
        away = (-25, 7) if row["parameter"] < 1 else (4, 7)
        _say(axes, row, f"a = {row['parameter']:g}", away, LOOKS["retrained"][0])
    axes.set_title(f"{label}: {part['n'].iloc[0]:,} prompts", loc="left")
    axes.set_xlabel("KL to the reference (nats a response)")


def _say(axes: Axes, row: pd.Series, text: str, offset: tuple[float, float], colour: str) -> None:
    at = (row["kl"], row["reward"])
    axes.annotate(text, at, xytext=offset, textcoords="offset points", fontsize=6, color=colour)


def _points(axes: Axes, rows: pd.DataFrame, colour: str, marker: str, name: str) -> None:
    across, up = ((rows[of] - rows[f"{of}_low"], rows[f"{of}_high"] - rows[of]) for of in ("kl", "reward"))
    axes.errorbar(
        rows["kl"], rows["reward"], xerr=across, yerr=up, fmt=marker, color=colour, ecolor=colour, elinewidth=0.5,
        markersize=4, markeredgewidth=1.2 if marker == "x" else 0.4, alpha=0.9, label=name,
    )  # fmt: skip
