"""The signal by position: R_t, how much of the whole is reached where, rank shifts, and how many still run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from shallow_signals.paper.gather import read_gathered
from shallow_signals.paper.style import GREY, PALETTE, SIDE_COLOURS, band, figure, legend, percent_axis, save

_NEEDED = {"label", "quantity", "measure", "axis", "x", "value", "low", "high", "n", "seeds"}
_CLASSES = {"shifted": (PALETTE[1], "rank above 3"), "marginal": (PALETTE[4], "rank 2-3")}
_SHORT = 128  # tokens up to which the axis of positions is linear
_WINDOW = 7  # neighbouring positions of the running mean
_ENOUGH = 0.1  # survivors below which a curve's noise does not set the scale


def draw_position(table: Path, outputs: Sequence[Path]) -> None:
    """Draw the gathered tables of `signal.position_table` and `signal.ranks`: a row of three panels per label.

    Left R_t of the log-ratio and of the policy's own log-probability; in the middle the share of the whole margin that
    the first tokens reach, beside their share of all tokens; right the shares of tokens whose likeliest one differs.
    Raises `InputError` for a table that lacks a column.
    """
    frame = read_gathered(table, _NEEDED)
    labels = list(dict.fromkeys(frame["label"]))
    height = 2.4 * len(labels) + 0.5
    with figure(2 * len(labels), 3, height=height, height_ratios=[1, 0.26] * len(labels)) as (made, axes):
        for number, label in enumerate(labels):
            part = frame[frame["label"] == label]
            above, below = axes[2 * number], axes[2 * number + 1]
            pairs, responses = (_rows(part, quantity, "survivors") for quantity in ("pairs", "rank"))
            _signal(above[0], part, pairs)
            _reached(above[1], part)
            _ranks(above[2], part, responses)
            for panel, strip, alive in zip(above, below, (pairs, pairs, responses), strict=True):
                _survivors(panel, strip, alive)
            first = _rows(part, "log_ratio", "signal").iloc[0]
            runs = f", {first['seeds']:.0f} seeds" if first["seeds"] > 1 else ""
            above[0].set_title(f"{label}: {pairs['n'].iloc[0]:,.0f} pairs{runs}", loc="left")
            above[1].set_title(_concentration(part), loc="left", fontsize=6.5)
            above[2].set_title(f"{responses['n'].iloc[0] // 2:,.0f} pairs read by both", loc="left")
            below[0].set_ylabel("pairs (%)")
            below[2].set_ylabel("resp. (%)")
        for panel in axes[-1]:
            panel.set_xlabel("position (tokens)")
        legend(made, axes[0], 4)
        save(made, outputs)


def _signal(axes: Axes, part: pd.DataFrame, pairs: pd.DataFrame) -> None:
    axes.axhline(0, color=GREY, linewidth=0.6)
    enough = pairs.loc[pairs["value"] >= _ENOUGH, "x"].max()
    drawn = []
    for quantity, colour, width, label in (
        ("log_prob", "#AAAAAA", 2.4, "R of the policy's log-probability"),
        ("log_ratio", SIDE_COLOURS["head"], 1.0, "R of the log-ratio"),
    ):
        rows = _rows(part, quantity, "signal")
        axes.fill_between(rows["x"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
        axes.plot(rows["x"], rows["value"], color=colour, linewidth=width, label=label)
        drawn.append(rows.loc[rows["x"] <= enough, ["low", "high", "value"]])
    values = pd.concat(drawn)
    room = 0.06 * (values.max().max() - values.min().min() or 1.0)
    axes.set_ylim(values.min().min() - room, values.max().max() + room)
    axes.set_ylabel("R at a position (nats)")


def _reached(axes: Axes, part: pd.DataFrame) -> None:
    read = _rows(part, "tokens", "share_reached")
    axes.plot(read["x"], read["value"], color=GREY, linestyle=":", label="share of the tokens: an even signal")
    rows = _rows(part, "log_ratio", "share_reached")
    band(
        axes,
        rows["x"].tolist(),
        (rows["value"].tolist(), rows["low"].tolist(), rows["high"].tolist()),
        colour=SIDE_COLOURS["head"],
        label="share of the margin reached",
        marker="",
    )
    axes.set_ylim(min(-0.05, rows["value"].min()), max(1.05, rows["value"].max()))
    axes.set_ylabel("share reached (%)")
    percent_axis(axes)


def _ranks(axes: Axes, part: pd.DataFrame, responses: pd.DataFrame) -> None:
    for measure, (colour, label) in _CLASSES.items():
        rows = _rows(part, "rank", measure)
        axes.plot(rows["x"], rows["value"], color=colour, linewidth=0.5, alpha=0.5)
        smooth = rows["value"].rolling(_WINDOW, center=True, min_periods=1).mean()
        axes.plot(rows["x"], smooth, color=colour, linewidth=1.4, label=label)
        floor = part[(part["measure"] == measure) & (part["axis"] == "last_quarter")]["value"].iloc[0]
        last = "floor: last quarter of each response" if measure == "shifted" else None
        axes.axhline(floor, color=colour, linewidth=0.9, linestyle="--", label=last)
    enough = responses.loc[responses["value"] >= _ENOUGH, "x"].max()
    shown = part[(part["quantity"] == "rank") & part["measure"].isin(list(_CLASSES)) & (part["x"] <= enough)]
    axes.set_ylim(0, max(0.02, 1.05 * shown["high"].fillna(shown["value"]).max()))
    axes.set_ylabel("tokens (%)")
    percent_axis(axes)


def _survivors(panel: Axes, strip: Axes, alive: pd.DataFrame) -> None:
    """The strip below a panel, on the panel's axis of positions."""
    strip.fill_between(alive["x"], 0, alive["value"], color="#BBBBBB", linewidth=0)
    strip.set_ylim(0, 1)
    strip.set_yticks([0, 1])
    percent_axis(strip)
    longest = alive["x"].max()
    for axes in (panel, strip):
        if longest > _SHORT:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set_xlim(1, max(2, longest))
    panel.tick_params(labelbottom=False)


def _concentration(part: pd.DataFrame) -> str:
    tokens = part[part["measure"] == "holding"].iloc[0]
    head = part[part["measure"] == "held_by_head"].iloc[0]
    size = f"{tokens['value']:.0%}"
    return f"{size} of tokens hold {tokens['x']:.0f}% of |log-ratio|;\nthe first {size} hold {head['value']:.0%}"


def _rows(part: pd.DataFrame, quantity: str, measure: str) -> pd.DataFrame:
    found = part[(part["quantity"] == quantity) & (part["measure"] == measure) & (part["axis"] == "position")]
    return found.sort_values("x")
