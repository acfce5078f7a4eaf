"""The probe: a linear model that asks where the signal is before any other is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shallow_signals.config.base import Closed, Name, Percent


class Probe(Closed):
    """A bag-of-n-grams Bradley-Terry probe of one data set."""

    dataset: Name
    sides: list[Literal["head", "tail", "window"]] = ["head", "tail", "window"]
    ratios: list[Percent] = [10, 20, 25, 33, 40, 50, 60, 75]
    folds: int = Field(default=5, ge=2)
    seed: int = Field(default=0, ge=0)
    hold_out_generators: bool = False  # besides the plain split, one where generators are held out too
    rows: int | None = Field(default=None, ge=10)  # a subset, drawn by hash of the pair's content
