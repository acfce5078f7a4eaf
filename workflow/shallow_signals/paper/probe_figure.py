"""The probe's figure: accuracy against the share of words kept, for heads, tails and windows."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from shallow_signals.files import InputError
from shallow_signals.paper.style import GREY, PAGE, SIDE_COLOURS, SIDE_MARKERS, band, figure, percent_axis, save

_TESTS = {"full": "tested on full responses", "kept": "tested on what was kept"}
_SPLITS = {"plain": "", "generators_held_out": ", generators held out"}
_MEANINGS = {
    "early": "early: the head tells more than the tail",
    "late": "late: the tail tells more than the head",
    "everywhere": "everywhere: head and tail tell equally much",
    "length": "length: the lengths alone do as well as the words",
    "undecided": "undecided",
}
_LINE = 142  # characters of the caption's font on a page's width


def draw_probe(table: Path, summary: Path, label: str, outputs: Sequence[Path]) -> None:
    """Draw the table of `signal.probe.run_probe` with the verdict of its summary, to each of `outputs` (.png, .pdf).

    One row of two panels per split: tested on full responses, and on what was kept. Raises `InputError` for a table or
    summary that can't be read.
    """
    frame, found = _read(table, summary)
    splits = list(dict.fromkeys(frame["split"]))
    lines = [line for split in splits for line in textwrap.wrap(_caption(found["splits"][split], split), _LINE)]
    height = 2.35 * len(splits) + 0.35 + 0.14 * len(lines)
    with figure(len(splits), len(_TESTS), width=PAGE, height=height) as (made, axes):
        for row, split in zip(axes, splits, strict=True):
            part = frame[frame["split"] == split]
            for panel, test in zip(row, _TESTS, strict=True):
                _panel(panel, part, test)
                panel.set_title(f"{_TESTS[test]}{_SPLITS[split]}")
            low, high = _limits(part)
            for panel in row:
                panel.set_ylim(low, high)
            row[0].set_ylabel("accuracy (%)")
        for panel in axes[-1]:
            panel.set_xlabel("share of words kept (%)")
        handles, names = axes[0][0].get_legend_handles_labels()
        bold = {"weight": "bold", "size": 9}
        made.legend(
            handles, names, loc="outside upper center", ncols=len(names), title=label, title_fontproperties=bold
        )
        made.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5, color="#333333", linespacing=1.4)
        save(made, outputs)


def _read(table: Path, summary: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    try:
        frame, found = pd.read_csv(table), json.loads(summary.read_text(encoding="utf-8"))
        missing = {"split", "train_side", "ratio", "test", "accuracy", "low", "high"} - set(frame.columns)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{table}, {summary}: not a probe's table and summary ({error}); run the probe again"
        ) from error
    if missing:
        raise InputError(f"{table}: no column {', '.join(sorted(missing))}; run the probe again")
    return frame, found


def _panel(axes: Axes, part: pd.DataFrame, test: str) -> None:
    whole = _row(part, "full", "full")
    axes.axhline(whole.accuracy, color=SIDE_COLOURS["full"], linewidth=0.8, linestyle="--", label="full responses")
    length = _row(part, "length", "length")
    axes.axhline(length.accuracy, color=GREY, linewidth=1.2, linestyle=":", label="length only")
    for side in ("head", "tail", "window"):
        rows = part[(part["train_side"] == side) & (part["test"] == test)].sort_values("ratio")
        if len(rows):
            band(
                axes,
                [*rows["ratio"], 100],
                tuple([*rows[name], getattr(whole, name)] for name in ("accuracy", "low", "high")),  # type: ignore[arg-type]
                colour=SIDE_COLOURS[side],
                marker=SIDE_MARKERS[side],
                label=f"{side} kept",
            )
    axes.plot([100], [whole.accuracy], color=SIDE_COLOURS["full"], marker=SIDE_MARKERS["full"], zorder=4, markersize=4)
    axes.set_xlim(0, 103)
    axes.set_xticks(range(0, 101, 20))
    percent_axis(axes)


def _limits(part: pd.DataFrame) -> tuple[float, float]:
    """One range for both panels: everything that is drawn, and a little room."""
    drawn = part[~part["test"].isin(["shuffled"]) & (part["train_side"] != "longer")]
    lines = drawn["train_side"] == "length"
    low = min(drawn.loc[~lines, "low"].min(), drawn.loc[lines, "accuracy"].min())
    high = max(drawn.loc[~lines, "high"].max(), drawn.loc[lines, "accuracy"].max())
    room = 0.06 * (high - low)
    return low - room, high + room


def _row(part: pd.DataFrame, side: str, test: str) -> Any:
    return next(part[(part["train_side"] == side) & (part["test"] == test)].itertuples())


def _caption(found: dict[str, Any], split: str) -> str:
    """The verdict of one split and the numbers behind it, in a sentence or two."""
    name = {"plain": "Held-out clusters", "generators_held_out": "Held-out clusters and generators"}[split]
    parts = [f"{name} \N{EN DASH} {_MEANINGS[found['verdict']]}."]
    if "ratio" in found:
        parts.append(
            f"Head minus tail at {found['ratio']}%, on what was kept: {_points(found['head_minus_tail_on_kept'])}."
        )
    parts.append(f"Length only minus full: {_points(found['length_only_minus_full'])}.")
    parts.append(f"{found['pairs']:,} pairs, {found['clusters']:,} clusters; bands: intervals over clusters.")
    return " ".join(parts)


def _points(found: dict[str, Any]) -> str:
    """A difference of accuracies in percentage points, with its interval."""
    value, *bounds = (f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}") for share in _numbers(found))
    return f"{value} points [{', '.join(bounds)}]" if bounds else f"{value} points"


def _numbers(found: dict[str, Any]) -> list[float]:
    return [found["value"], *(found["interval"] or [])]
