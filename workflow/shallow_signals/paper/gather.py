"""One table of what a figure shows: put together, and read again to be drawn."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from shallow_signals.files import InputError, write_text


def gather(tables: Iterable[tuple[str, str]], output: Path) -> None:
    """Write the tables one below the other, each path's under its label (column `label`), every cell as it stands.

    Without a table it is an `InputError`.
    """
    frames = [pd.read_csv(path, dtype=str, keep_default_na=False).assign(label=label) for label, path in tables]
    if not frames:
        raise InputError(f"{output}: there is nothing to show; name it in `figures` of the configuration")
    frame = pd.concat(frames)
    write_text(output, frame[["label", *frame.columns.drop("label")]].to_csv(index=False))


def read_gathered(table: Path, needed: Collection[str], **options: Any) -> pd.DataFrame:
    """A figure's table (`options` as `pandas.read_csv` takes them); one that lacks a column is an `InputError`."""
    frame: pd.DataFrame = pd.read_csv(table, **options)
    if missing := set(needed) - set(frame.columns):
        raise InputError(f"{table}: no column {', '.join(sorted(missing))}; gather it again")
    return frame
