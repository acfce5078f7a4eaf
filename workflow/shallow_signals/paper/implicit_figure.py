"""Figures 2 and 5: accuracy of implicit rewards against the share, and against the number, of tokens that are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from shallow_signals.paper.gather import read_gathered
from shallow_signals.paper.style import (
    GREY,
    PAGE,
    PALETTE,
    SIDE_COLOURS,
    SIDE_MARKERS,
    band,
    figure,
    legend,
    percent_axis,
    save,
)

_BESIDE = {
    "tail": (SIDE_COLOURS["tail"], SIDE_MARKERS["tail"], "last part"),
    "window": (SIDE_COLOURS["window"], SIDE_MARKERS["window"], "random window"),
    "min_length": (PALETTE[3], "v", "first part, both as long as the shorter"),
}
# Where policies were trained on halves of the pairs: tokens that the other half's policy picks, and what to compare.
_CROSSED: dict[str, dict[str, Any]] = {
    "topshare": {"color": PALETTE[4], "marker": "D", "label": "largest log-ratios, picked by a model of other pairs"},
    "half_head": {"color": SIDE_COLOURS["head"], "linestyle": "--", "label": "first part, half the training pairs"},
    "random": {"color": GREY, "linestyle": "--", "label": "random tokens, half the training pairs"},
}
_NEEDED = {"label", "axis", "curve", "x", "accuracy", "low", "high", "n", "clusters", "seeds", "ties"}


def draw_implicit_rewards(table: Path, outputs: Sequence[Path]) -> None:
    """Draw the gathered tables of `signal.curves`: a row of panels per data set, by share (left) and by tokens (right).

    Raises `InputError` for a table that lacks a column.
    """
    frame = read_gathered(table, _NEEDED)
    labels = list(dict.fromkeys(frame["label"]))
    with figure(len(labels), 2, width=PAGE, height=2.5 * len(labels) + 0.8) as (made, axes):
        for (left, right), label in zip(axes, labels, strict=True):
            part = frame[frame["label"] == label]
            _by_share(left, part[part["axis"] == "ratio"])
            _by_tokens(right, part[part["axis"] == "length"])
            first = part.iloc[0]
            runs = f", {first['seeds']} seeds" if first["seeds"] > 1 else ""
            left.set_title(f"{label}: {first['n']:,} pairs, {first['clusters']:,} clusters{runs}", loc="left")
            left.set_ylabel("accuracy (%)")
            low, high = min(a.get_ylim()[0] for a in (left, right)), max(a.get_ylim()[1] for a in (left, right))
            for panel in (left, right):
                panel.set_ylim(low, high)
        axes[-1][0].set_xlabel("share of each response's tokens read (%)")
        axes[-1][1].set_xlabel("tokens of each response read")
        legend(made, axes[:, 0], 3)
        save(made, outputs)


def _by_share(axes: Axes, part: pd.DataFrame) -> None:
    head = _curve(part, "head")
    band(axes, head["x"].tolist(), _interval(head), colour=SIDE_COLOURS["head"], label="first part")
    closed = _curve(part, "head_closed")
    axes.plot(closed["x"], closed["accuracy"], color=SIDE_COLOURS["head"], linewidth=0.7, label="with end of turn")
    for curve, (colour, marker, label) in _BESIDE.items():
        rows = _curve(part, curve)
        axes.plot(rows["x"], rows["accuracy"], color=colour, marker=marker, linewidth=1.0, label=label)
    for curve, style in _CROSSED.items():
        rows = _curve(part, curve)
        if len(rows):
            axes.plot(rows["x"], rows["accuracy"], linewidth=1.0, **style)
    longer = _curve(part, "longer")["accuracy"].iloc[0]
    axes.axhline(longer, color=GREY, linewidth=1.0, linestyle=":", label="the longer one wins")
    for row in _curve(part, "shuffled").dropna(subset=["low"]).to_dict("records"):
        label = f"trained on shuffled labels (mean of {row['seeds']})"
        errors = [[row["accuracy"] - row["low"]], [row["high"] - row["accuracy"]]]
        axes.errorbar([row["x"]], [row["accuracy"]], errors, color=GREY, marker="x", linewidth=1.0, label=label)
    axes.set_xlim(0, 102)
    percent_axis(axes)


def _by_tokens(axes: Axes, part: pd.DataFrame) -> None:
    head = _curve(part, "head")
    band(axes, head["x"].tolist(), _interval(head), colour=SIDE_COLOURS["head"], label="first part")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    percent_axis(axes)


def _curve(part: pd.DataFrame, name: str) -> pd.DataFrame:
    return part[part["curve"] == name].sort_values("x")


def _interval(rows: pd.DataFrame) -> tuple[list[float], list[float], list[float]]:
    return rows["accuracy"].tolist(), rows["low"].tolist(), rows["high"].tolist()
