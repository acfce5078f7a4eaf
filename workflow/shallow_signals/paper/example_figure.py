"""Figure 1: pairs with their tokens shaded by what the policy says of each beyond the reference, and the cut marked."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from shallow_signals.paper.gather import read_gathered
from shallow_signals.paper.style import GREY, PAGE, PALETTE, canvas, save
from shallow_signals.signal.token_lines import CUT, WIDTH, token_lines

# Points, 72 to an inch: what the axes of this figure count in.
_PAGE = PAGE * 72
_MARGIN, _GUTTER = 6.0, 14.0
_COLUMN = (_PAGE - 2 * _MARGIN - _GUTTER) / 2
_CELL = _COLUMN / WIDTH  # one character
_MONO, _SANS = "DejaVu Sans Mono", "DejaVu Sans"  # both come with matplotlib
_SIZE = _CELL / 0.60205  # of the type: its characters are all that wide, in sizes
_LEADING = 1.5 * _SIZE
_TEXT, _HEAD = 6.5, 8.0
_LINE = 1.45 * _TEXT
_WRAP = 150  # characters of the text's size on a page's width
_SHADES = LinearSegmentedColormap.from_list("log-ratio", [PALETTE[1], "#F4B58A", "#FFFFFF", "#8FC1E3", PALETTE[0]])
_STRENGTH = 0.62  # of the darkest shade: black type stays legible on it
_NEEDED = {"label", "kind", "pair_id", "side", "token", "log_ratio", "kept", "early_share", "median", "fitting"}
_TITLES = {
    "early": "the signal comes early",
    "late": "a counter-example: the signal comes late",
}


@dataclass
class _Pen:
    """What is drawn, top down: `top` is the distance from the upper edge in points."""

    axes: Axes
    norm: Normalize
    top: float = _MARGIN

    def text(self, x: float, text: str, size: float = _TEXT, **style: Any) -> None:
        """A line of type whose upper edge is at `top`."""
        at = self.top + 0.98 * size
        self.axes.text(x, at, drawable(text, _SANS), fontsize=size, va="baseline", parse_math=False, **style)


def draw_examples(table: Path, outputs: Sequence[Path]) -> None:
    """Draw the gathered tables of `signal.examples`, one panel an example: prompt, chosen (left) and rejected (right).

    Raises `InputError` for a table that lacks a column.
    """
    frame = read_gathered(table, _NEEDED, keep_default_na=False, na_values={"log_ratio": [""], "kept": [""]})
    limit = float(np.quantile(frame["log_ratio"].dropna().abs(), 0.975)) or 1.0
    panels = [part for _, part in frame.groupby(["label", "kind"], sort=False)]
    height = _MARGIN + sum(map(_height, panels)) + 36
    with canvas(PAGE, height / 72) as made:
        axes = made.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, _PAGE)
        axes.set_ylim(height, 0)
        pen = _Pen(axes, Normalize(-limit, limit))
        for part in panels:
            _panel(pen, part)
        _legend(made, pen, height)
        save(made, outputs)


@cache
def _glyphs(family: str) -> frozenset[int]:
    return frozenset(get_font(findfont(family)).get_charmap())


def drawable(text: str, family: str = _MONO) -> str:
    """The text with a box for each character that can't be drawn: not in the font, or not visible by itself."""
    known = _glyphs(family)
    return "".join(c if ord(c) in known and unicodedata.category(c)[0] != "C" else "\u25a1" for c in text)


def _height(part: pd.DataFrame) -> float:
    lines = max(len(_lines(part, side)) for side in ("chosen", "rejected"))
    return 1.45 * _HEAD + _LINE * (len(_caption(part)) + len(_prompt(part)) + 1) + lines * _LEADING + 16


def _panel(pen: _Pen, part: pd.DataFrame) -> None:
    first = part.iloc[0]
    pen.text(_MARGIN, f"{first['label']}: {_TITLES[first['kind']]}", _HEAD, weight="bold")
    pen.top += 1.45 * _HEAD
    for line in _caption(part):
        pen.text(_MARGIN, line, color=GREY)
        pen.top += _LINE
    for line in _prompt(part):
        pen.text(_MARGIN, line, style="italic")
        pen.top += _LINE
    pen.top += 3
    below = pen.top
    for side, x in (("chosen", _MARGIN), ("rejected", _MARGIN + _COLUMN + _GUTTER)):
        pen.top = below
        rows = part[part["side"] == side]
        kept = rows["kept"].astype(bool)
        sums = _nats(rows["log_ratio"].sum()), _nats(rows.loc[kept, "log_ratio"].sum())
        pen.text(x, f"{side}: {len(rows)} tokens, log-ratio {sums[0]}, first {CUT}% of them {sums[1]}", weight="bold")
        pen.top += _LINE + 1
        _response(pen, x, rows, _lines(part, side))
    pen.top = below + _LINE + 1 + 12 + _LEADING * max(len(_lines(part, s)) for s in ("chosen", "rejected"))


def _response(pen: _Pen, left: float, rows: pd.DataFrame, lines: list[list[Any]]) -> None:
    """Shaded tokens of one response, and a bar where the cut falls."""
    ratios = rows["log_ratio"].to_numpy()
    last_kept = int(rows["kept"].astype(bool).sum()) - 1
    boxes, shades, bar = [], [], None
    for number, line in enumerate(lines):
        top = pen.top + number * _LEADING
        low, high = top + 0.06 * _LEADING, top + 0.94 * _LEADING
        for piece in line:
            x0 = left + piece.column * _CELL
            x1 = x0 + len(piece.text) * _CELL
            boxes.append([(x0, low), (x1, low), (x1, high), (x0, high)])
            shades.append(_shade(pen.norm, ratios[piece.token]))
            at = top + 0.5 * _LEADING + 0.35 * _SIZE
            words = drawable(piece.text)
            pen.axes.text(x0, at, words, fontsize=_SIZE, family=_MONO, va="baseline", parse_math=False, zorder=3)
            if piece.token == last_kept:
                bar = (x1 + 1, top, top + _LEADING)
    pen.axes.add_collection(PolyCollection(boxes, facecolors=shades, edgecolors="white", linewidths=0.4, zorder=1))
    if bar and last_kept < len(rows) - 1:
        x, upper, lower = bar
        pen.axes.plot([x, x], [upper, lower], color="black", linewidth=2, solid_capstyle="butt", zorder=4)


def _shade(norm: Normalize, ratio: float) -> tuple[float, ...]:
    """The colour of a log-ratio: blue where the policy says more than the reference, orange where less."""
    return _tint(float(np.clip(norm(ratio), 0, 1)))


def _tint(place: float) -> tuple[float, ...]:
    colour = np.array(_SHADES(place))
    return (*(1 - _STRENGTH * (1 - colour[:3])), 1.0)


def _legend(made: Figure, pen: _Pen, height: float) -> None:
    """The colour bar and the sign of the cut, at the foot."""
    shades = LinearSegmentedColormap.from_list("shades", [_tint(place) for place in np.linspace(0, 1, 101)])
    below = made.add_axes((0.30, 22 / height, 0.40, 7 / height))
    bar = made.colorbar(ScalarMappable(pen.norm, shades), cax=below, orientation="horizontal", extend="both")
    bar.outline.set_linewidth(0.4)
    bar.set_label("log(policy / reference) of a token (nats)", fontsize=_TEXT, labelpad=1)
    below.tick_params(labelsize=6, length=2, width=0.4, pad=1)
    pen.top = height - 30
    pen.axes.plot([_MARGIN + 2], [pen.top + 4], color="black", marker="|", markersize=8, markeredgewidth=1.6)
    pen.text(_MARGIN + 8, f"the {CUT}% cut")


def _lines(part: pd.DataFrame, side: str) -> list[list[Any]]:
    return token_lines(part.loc[part["side"] == side, "token"].tolist())


def _prompt(part: pd.DataFrame) -> list[str]:
    text = " ".join(part.loc[part["side"] == "prompt", "token"].iloc[0].split())
    found = textwrap.wrap(f"Prompt: {text}", _WRAP, max_lines=2, placeholder=" \u2026")
    return found or ["Prompt:"]


def _caption(part: pd.DataFrame) -> list[str]:
    first = part.iloc[0]
    chosen, rejected = (part[part["side"] == side] for side in ("chosen", "rejected"))
    whole = chosen["log_ratio"].sum() - rejected["log_ratio"].sum()
    head = sum(
        sign * rows.loc[rows["kept"].astype(bool), "log_ratio"].sum() for sign, rows in ((1, chosen), (-1, rejected))
    )
    text = (
        f"The first {CUT}% of both responses make {_nats(head)} of the margin of {_nats(whole)} nats; their share of "
        f"the signal is {first['early_share']:.0%} (median of the {first['fitting']:,} pairs that have room here: "
        f"{first['median']:.0%}). Pair {first['pair_id']}."
    )
    return list(textwrap.wrap(text, _WRAP))


def _nats(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "\N{MINUS SIGN}")
