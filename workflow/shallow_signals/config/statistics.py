"""How intervals are made."""

from __future__ import annotations

from pydantic import Field

from shallow_signals.config.base import Closed


class Statistics(Closed):
    """How intervals are made."""

    resamples: int = Field(default=2000, ge=100)
    seed: int = Field(default=20250521, ge=0)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    comparable_margin: float = Field(default=0.02, gt=0, lt=0.5)  # "comparable": the interval lies above minus this
    min_clusters: int = Field(default=30, ge=2)  # below: a t-interval over clusters
