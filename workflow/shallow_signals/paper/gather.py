"""One table of what a figure shows, put together from the tables of what it shows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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
