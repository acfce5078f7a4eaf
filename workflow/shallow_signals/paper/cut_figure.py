"""Accuracy of reward models by the part of a response that is read: one panel per experiment, one line per model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from shallow_signals.config.truncation import parse
from shallow_signals.evaluation.curves import COLUMNS
from shallow_signals.files import InputError
from shallow_signals.paper.layout import label_of
from shallow_signals.paper.style import GREY, PAGE, PALETTE, SIDE_COLOURS, figure, legend, percent_axis, save

ACROSS = 3
_OTHERS = {"min_length": PALETTE[3], "pairs": PALETTE[4]}


def draw_reward_by_cut(table: Path, outputs: Sequence[Path]) -> None:
    """Draw the table of `evaluation.curves.reward_by_cut`; bands are drawn for the model trained on whole responses.

    Each experiment shows its held-out pairs, or its first benchmark where it has none. Models of shuffled labels are
    left out. Raises `InputError` for a table that lacks a column.
    """
    frame = pd.read_csv(table)
    if list(frame.columns) != COLUMNS:
        raise InputError(f"{table}: its columns are not {', '.join(COLUMNS)}; gather it again")
    shuffled = frame["truncation"].map(lambda name: parse(name).kind == "shuffled")
    frame = frame[~shuffled & (frame["test_set"] == frame.groupby("experiment")["test_set"].transform("first"))]
    names = list(dict.fromkeys(frame["experiment"]))
    rows = math.ceil(len(names) / ACROSS)
    with figure(rows, ACROSS, width=PAGE, height=1.9 * rows + 0.5) as (made, axes):
        panels = list(axes.flat)
        for panel, name in zip(panels, names, strict=False):
            _panel(panel, frame[frame["experiment"] == name])
        for panel in panels[len(names) :]:
            panel.set_axis_off()
        for row in axes:
            row[0].set_ylabel("accuracy (%)")
        for panel in panels[max(0, len(names) - ACROSS) : len(names)]:
            panel.set_xlabel("share of each response read (%)")
        legend(made, panels, 5, title="trained on")
        save(made, outputs)


def _panel(axes: Axes, part: pd.DataFrame) -> None:
    for truncation, rows in part.groupby("truncation", sort=False):
        cut = parse(str(truncation))
        rows = rows.sort_values("kept_percent")
        colour = SIDE_COLOURS["full"] if cut.keeps_text and cut.kind != "pairs" else _OTHERS.get(cut.kind)
        colour = colour or SIDE_COLOURS[cut.side]
        # A shorter training cut is drawn lighter: one colour a side, one strength a length.
        strength = 1.0 if cut.ratio is None or cut.kind != "cut" else 0.3 + 0.7 * float(cut.ratio) / 0.5
        style = "--" if cut.kind == "pairs" or cut.unit == "char" else "-"
        axes.plot(
            rows["kept_percent"],
            rows["accuracy"],
            color=colour,
            alpha=min(1.0, strength),
            linestyle=style,
            linewidth=1.0,
            label=label_of(str(truncation)),
        )
        if cut.kind == "full":
            axes.fill_between(rows["kept_percent"], rows["low"], rows["high"], color=colour, alpha=0.12, linewidth=0)
    axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_title(f"{part['label'].iloc[0]} ({part['n'].max():,} pairs)")
    axes.set_xlim(0, 102)
    percent_axis(axes)
