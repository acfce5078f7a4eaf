"""What one output of a run takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """One output's share of a run; `problem` says why it can't be made on this kind of GPU."""

    tokens: float = 0.0  # that a model reads, padding left out
    flops: float = 0.0  # of the model; recomputation is left out
    trains: bool = False
    generated: float = 0.0  # tokens sampled one by one, at most (prompts are left out)
    weights: float = 0.0  # bytes that each sampled token reads
    gpus: int = 1
    memory: float = 0.0  # bytes on each of them
    disk: float = 0.0  # bytes that stay
    problem: str | None = None
