"""One look for all figures: clean sans serif, a colour-blind safe palette, and files without time stamps.

Figures are built from `Figure` itself, without pyplot: no display, no global state, and a quicker import.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from shallow_signals.files import InputError, replacing

DPI = 200
PAGE = 7.0  # inches: the width of a page of two columns
# Okabe and Ito's palette, in an order that also tells apart in grey.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SIDE_COLOURS = {"full": "#222222", "head": PALETTE[0], "tail": PALETTE[1], "window": PALETTE[2]}
SIDE_MARKERS = {"full": "D", "head": "o", "tail": "s", "window": "^"}
GREY = "#666666"

_RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same letters on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 3,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}


@contextmanager
def figure(
    rows: int = 1,
    columns: int = 1,
    *,
    width: float = PAGE,
    height: float = 2.8,
    height_ratios: Sequence[float] | None = None,
) -> Iterator[tuple[Figure, Any]]:
    """A figure of `width` x `height` inches and its axes, [rows, columns], in the project's style; save it inside."""
    with canvas(width, height) as made:
        made.set_layout_engine("constrained")
        yield made, made.subplots(rows, columns, squeeze=False, height_ratios=height_ratios)


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of `width` x `height` inches in the project's style, for axes that are placed by hand."""
    with rc_context(_RC):  # type: ignore[arg-type]  # its keys are literals there
        made = Figure(figsize=(width, height))
        FigureCanvasAgg(made)
        yield made


def save(made: Figure, paths: Sequence[Path]) -> None:
    """Write one figure as PNG and PDF by the paths' suffixes, atomically; the same figure gives the same bytes."""
    nothing = {".png": {"Software": None}, ".pdf": {"CreationDate": None, "ModDate": None}}
    for path in paths:
        if path.suffix not in nothing:
            raise InputError(f"{path}: figures are written as .png or .pdf; name the file accordingly")
        with replacing(path) as partial:
            made.savefig(partial, format=path.suffix[1:], dpi=DPI, metadata=nothing[path.suffix])


def legend(made: Figure, panels: Iterable[Axes], columns: int, **options: Any) -> None:
    """One legend above all panels, of at most `columns`; what several of them show stands in it once."""
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    columns = min(columns, len(found))
    made.legend(list(found.values()), list(found), loc="outside upper center", ncols=columns, **options)


def percent_axis(axes: Axes) -> None:
    """Label a vertical axis of shares (0 to 1) in percent, with as many decimals as its ticks need."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))


def band(
    axes: Axes,
    x: Sequence[float],
    rows: tuple[Sequence[float], Sequence[float], Sequence[float]],
    *,
    colour: str,
    label: str,
    marker: str = "o",
) -> None:
    """A line with its interval: `rows` holds value, low and high, each as long as `x`."""
    value, low, high = rows
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, value, color=colour, marker=marker, label=label)
