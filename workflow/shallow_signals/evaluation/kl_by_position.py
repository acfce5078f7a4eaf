"""KL between policy and reference by position (Figure 3), on the policy's own samples and on given texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.statistics import POSITIVE, Estimate, cluster_bootstrap_mean
from shallow_signals.files import InputError, read_parquet

COLUMNS = ["text", "axis", "position", "kl", "low", "high", "live", "clusters"]
FINE, COARSE = 128, 12  # about as many blocks of neighbouring positions are shown
OWN = "own"


@dataclass(frozen=True)
class Curve:
    """Exact KLs before each token of some texts, [T] each; the first of them stands at position `start` + 1."""

    kl: list[NDArray[np.float32]]
    clusters: list[str]
    start: int = 0


def own_samples(responses: Path) -> Curve:
    """The responses that the policy alone made in a decoding run; `InputError` where it made none."""
    table = read_parquet(responses, ["prompt_id", "strategy", "kl_policy_reference"])
    table = table.filter(pc.equal(table["strategy"], "policy"))
    if not table.num_rows:
        raise InputError(f"{responses}: holds no samples of the policy; decode with it")
    return Curve(_lists(table["kl_policy_reference"]), table["prompt_id"].to_pylist())


def given_texts(texts: Path) -> dict[str, Curve]:
    """The curves of a file of the schema `decoding.runs.TEXTS`, by kind of text."""
    table = read_parquet(texts, ["text", "prompt_id", "start", "kl"])
    found = {}
    for name in dict.fromkeys(table["text"].to_pylist()):
        own = table.filter(pc.equal(table["text"], name))
        found[name] = Curve(_lists(own["kl"]), own["prompt_id"].to_pylist(), own["start"][0].as_py())
    return found


def kl_rows(curves: Mapping[str, Curve], settings: Statistics) -> Iterator[dict[str, Any]]:
    """Rows (keys `COLUMNS`) of the curves that a panel shows, by kind of text.

    `axis` "position": mean KL at a position over the texts that reach it (`live` of them), or over all tokens of a
    block of positions where there are more than `FINE`. "block": the same over `COARSE` blocks, which begin at the same
    tokens for all kinds. "first_third", "last_third": means over texts of each one's own thirds; the last third is the
    floor to which the beginning must be compared. "difference": first minus last third, paired. Texts of fewer than
    three tokens have no thirds.
    """
    longest = max(curve.start + max(map(len, curve.kl)) for curve in curves.values())
    for name, curve in curves.items():
        groups = np.array(curve.clusters)
        for axis, count in (("position", FINE), ("block", COARSE)):
            width = -(-longest // count)
            for first in range(0, longest, width):
                window = slice(max(0, first - curve.start), max(0, first + width - curve.start))
                alive = [i for i, kl in enumerate(curve.kl) if len(kl[window])]
                if alive:
                    parts = [curve.kl[i][window] for i in alive]
                    tokens = np.repeat(groups[alive], [len(part) for part in parts])
                    estimate = cluster_bootstrap_mean(np.concatenate(parts), tokens, settings, bounds=POSITIVE)
                    yield _row(name, axis, first + (width + 1) / 2, estimate, len(alive))
        long = [i for i, kl in enumerate(curve.kl) if len(kl) >= 3]
        if long:
            firsts, lasts = (np.array([_third(curve.kl[i], end) for i in long]) for end in ("first", "last"))
            for axis, values, bounds in (
                ("first_third", firsts, POSITIVE),
                ("last_third", lasts, POSITIVE),
                ("difference", firsts - lasts, (-np.inf, np.inf)),
            ):
                mean = cluster_bootstrap_mean(values, groups[long], settings, bounds=bounds)
                yield _row(name, axis, np.nan, mean, len(long))


def _lists(column: pa.ChunkedArray) -> list[NDArray[np.float32]]:
    whole = column.combine_chunks()
    ends = np.cumsum(whole.value_lengths().to_numpy(zero_copy_only=False))
    return np.split(whole.flatten().to_numpy(zero_copy_only=False), ends[:-1])


def _third(kl: Sequence[float] | NDArray[np.float32], end: str) -> float:
    size = len(kl) // 3
    part = kl[:size] if end == "first" else kl[len(kl) - size :]
    return float(np.mean(part))


def _row(name: str, axis: str, position: float, estimate: Estimate, live: int) -> dict[str, Any]:
    facts = [name, axis, position, estimate.value, estimate.low, estimate.high, live, estimate.clusters]
    return dict(zip(COLUMNS, facts, strict=True))
