"""How many updates bfloat16 weights swallow: a step below half the gap to the next number is none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

SAMPLE = 4096  # elements looked at per parameter


class LostUpdates(TrainerCallback):  # type: ignore[misc]
    """Counts, every `every` optimiser steps, sampled weights that had a gradient and did not change."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.lost = 0
        self.due = 0
        self._before: list[tuple[Tensor, Tensor]] = []

    @property
    def share(self) -> float | None:
        """Lost updates per update due; None where none was looked at."""
        return self.lost / self.due if self.due else None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        """Copy a sample of the weights that are about to change."""
        if state.global_step % self.every == 0:
            self._before = [(_sample(p).clone(), _sample(p.grad) != 0) for p in _updated(model)]

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, optimizer: torch.optim.Optimizer, **_: Any
    ) -> None:
        """Compare; a step of warm-up with a learning rate of zero is no update."""
        if self._before and optimizer.param_groups[0]["lr"] > 0:
            for parameter, (before, moved) in zip(_updated(model), self._before, strict=True):
                self.due += int(moved.sum())
                self.lost += int((moved & (_sample(parameter) == before)).sum())
        self._before = []


def _updated(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.grad is not None]


def _sample(values: Tensor | None) -> Tensor:
    assert values is not None
    return values.detach().reshape(-1)[:SAMPLE]
