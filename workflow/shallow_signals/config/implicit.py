"""Implicit rewards: which policy is read on which pairs, and where."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shallow_signals.config.base import Closed, Name, Percent

# Every position where most responses still run, then ever fewer of them.
POSITIONS = [*range(1, 65), *range(72, 129, 8), *range(160, 257, 32), *range(320, 513, 64), 640, 768, 1024]


class ImplicitReward(Closed):
    """Implicit rewards of a policy on one data set, at every cut (Figures 2 and 5) and position (Figure 1)."""

    label: str | None = None  # null: the data set's label
    dataset: Name
    part: Literal["test", "all"] = "test"
    policy: Name  # a DPO experiment (its models trained on full responses, all seeds) or a base model
    reference: Name | None = None  # a base model; null: the one that the DPO experiment started from
    beta: float = Field(default=0.1, gt=0)
    ratios: list[Percent] = [5, 10, 15, 20, 25, 30, 33, 40, 50, 60, 70, 80, 90, 100]
    lengths: list[Annotated[int, Field(ge=1)]] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    positions: list[Annotated[int, Field(ge=1)]] = POSITIONS  # 1-based: where the signal by position is read
    rank_pairs: int = Field(default=500, ge=1)  # pairs on which both models' likeliest tokens are compared
    max_length: int = Field(default=8192, ge=8)
