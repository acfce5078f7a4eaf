"""What every seed's policy and the reference say of the same pairs, read from their files of log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.compute as pc

from shallow_signals.files import InputError, read_parquet
from shallow_signals.models.logprob_files import read_logprobs
from shallow_signals.models.records import Floats
from shallow_signals.signal.implicit import PairRatios, log_ratios

Part = Literal["test", "all"]


@dataclass(frozen=True)
class Readings:
    """One data set read by every seed's policy and by the reference."""

    runs: list[list[PairRatios]]  # [seeds][n], the same pairs in the same order
    policies: list[list[tuple[Floats, Floats]]]  # [seeds][n] the policy's own log p of chosen and rejected, per token
    clusters: list[str]  # [n]

    def split(self, *sizes: int) -> list[Readings]:
        """The first `sizes[0]` runs, the next `sizes[1]` ..., and all that is left."""
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        bounds = zip([0, *ends], [*ends, len(self.runs)], strict=True)
        return [Readings(self.runs[a:b], self.policies[a:b], self.clusters) for a, b in bounds]


def read_ratios(policies: Sequence[Path], reference: Path, tokens: Path, part: Part) -> Readings:
    """Log-ratios of a data set's held-out pairs (`part` "test") or of all pairs that the first policy's file holds.

    `policies` and `reference` are files of log-probabilities, `tokens` the data set's tokens, which tell the split. The
    files of the others may hold more pairs; raises `InputError` where one lacks a pair, or where no pair is left.
    """
    clusters = clusters_of(policies[0], tokens, part)
    keys = list(clusters)
    base = read_logprobs(reference)
    runs, own = [], []
    for path in policies:
        read = read_logprobs(path)
        for file, held in ((path, read), (reference, base)):
            missing = [key for key in keys if key not in held]
            if missing:
                raise InputError(
                    f"{file}: lacks {len(missing)} pairs of {policies[0]}, {missing[0]} first; score it again"
                )
        runs.append([PairRatios(key, *map(log_ratios, read[key], base[key])) for key in keys])
        own.append([(read[key][0].tokens, read[key][1].tokens) for key in keys])
    return Readings(runs, own, list(clusters.values()))


def clusters_of(logprobs: Path, tokens: Path, part: Part) -> dict[str, str]:
    """The cluster of each pair of a file of log-probabilities (by `pair_id`, in its order) that belongs to `part`."""
    table = read_parquet(logprobs, ["pair_id", "cluster"])
    if part == "test":
        splits = read_parquet(tokens, ["pair_id", "split"])
        test = splits.filter(pc.equal(splits["split"], "test"))["pair_id"]
        table = table.filter(pc.is_in(table["pair_id"], test.combine_chunks()))
    if not table.num_rows:
        raise InputError(f"{logprobs}: holds no {part} pairs of {tokens}; score it again")
    return dict(zip(table["pair_id"].to_pylist(), table["cluster"].to_pylist(), strict=True))
