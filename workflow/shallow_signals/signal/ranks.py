"""Rank shift: how often a policy's likeliest token is not its reference's, by position (Lin et al., 2312.01552)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from shallow_signals.config.statistics import Statistics
from shallow_signals.data.pairs import uniform_hash
from shallow_signals.decoding.texts import Text, text_kl
from shallow_signals.evaluation.statistics import UNIT, cluster_bootstrap_mean
from shallow_signals.files import read_parquet
from shallow_signals.models.load import load_causal_lm, pick_device
from shallow_signals.models.logprob_files import READ
from shallow_signals.models.tree import TOKEN_BUDGET
from shallow_signals.signal.position_table import row
from shallow_signals.signal.ratios import Part, clusters_of

Ranks = NDArray[np.int32]
CLASSES = {"unshifted": (1, 1), "marginal": (2, 3), "shifted": (4, np.inf)}  # ranks, both ends included
LAST_QUARTER = 75  # percent of a response after which its shares are taken for the floor
_CHUNK = 64  # pairs between two steps of the progress bar


@dataclass(frozen=True)
class RankReadings:
    """The rank under the reference of each policy's likeliest token, at every token of some responses."""

    runs: list[list[Ranks]]  # [seeds][responses], [T] each
    clusters: list[str]  # [responses]


@dataclass(frozen=True)
class Sample:
    """Responses to read: each pair's prompt with both of its responses."""

    texts: list[Text]
    clusters: list[str]


def sample_texts(logprobs: Path, tokens: Path, part: Part, pairs: int) -> Sample:
    """As many pairs of a file of log-probabilities, chosen by hash, with the very tokens that were scored.

    Of the `part` "test" or "all" of the data set, whose `tokens` tell the split.
    """
    clusters = clusters_of(logprobs, tokens, part)
    picked = heapq.nsmallest(pairs, clusters, key=lambda key: (uniform_hash("ranks", key), key))
    table = read_parquet(logprobs, ["pair_id", *READ])
    rows = table.filter(pc.is_in(table["pair_id"], pa.array(picked))).to_pylist()
    texts: list[Text] = [(found["prompt_ids"], [found["chosen_ids"], found["rejected_ids"]]) for found in rows]
    return Sample(texts, [clusters[found["pair_id"]] for found in rows])


def read_ranks(sample: Sample, policies: Sequence[Path], reference: Path, dtype: torch.dtype) -> RankReadings:
    """Read the sample's responses under the reference and under each policy (checkpoint folders), one pass each."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    device = pick_device()
    base = load_causal_lm(reference, dtype, device=device)
    runs = []
    with tqdm(total=len(policies) * len(sample.texts), desc="reading pairs under both models", unit="pair") as bar:
        for folder in policies:
            policy = load_causal_lm(folder, dtype, device=device)
            run: list[Ranks] = []
            for start in range(0, len(sample.texts), _CHUNK):
                texts = sample.texts[start : start + _CHUNK]
                found = text_kl(policy, base, texts, token_budget=TOKEN_BUDGET[device.type])
                run += [response.argmax_rank for responses in found for response in responses]
                bar.update(len(texts))
            runs.append(run)
    return RankReadings(runs, [cluster for cluster in sample.clusters for _ in range(2)])


def rank_rows(found: RankReadings, positions: Sequence[int], settings: Statistics) -> Iterator[dict[str, Any]]:
    """Rows (keys `position_table.COLUMNS`) of quantity "rank": shares of the tokens of rank 1, 2-3 and above 3.

    `axis` "position": over the responses that are as long as x (n; their share of all is the measure "survivors").
    `axis` "whole": over all tokens, each response by its own share. "last_quarter": over each response's last quarter,
    the floor to which the early shares must be compared: a policy that differs anywhere differs a little everywhere.
    """
    lengths = np.array([len(ranks) for ranks in found.runs[0]])
    groups = np.array(found.clusters)
    for at in [*(position for position in positions if position < lengths.max()), int(lengths.max())]:
        alive = np.flatnonzero(lengths >= at)
        ranks = np.array([[run[i][at - 1] for i in alive] for run in found.runs])
        for name, (low, high) in CLASSES.items():
            share = cluster_bootstrap_mean((low <= ranks) & (ranks <= high), groups[alive], settings, bounds=UNIT)
            yield row("rank", name, "position", at, share)
        running = cluster_bootstrap_mean(lengths >= at, groups, settings, bounds=UNIT)
        yield row("rank", "survivors", "position", at, running)
    for axis, percent in (("whole", 0), ("last_quarter", LAST_QUARTER)):
        for name, (low, high) in CLASSES.items():
            parts = [[ranks[percent * len(ranks) // 100 :] for ranks in run] for run in found.runs]
            shares = np.array([[np.mean((low <= part) & (part <= high)) for part in run] for run in parts])
            yield row("rank", name, axis, percent, cluster_bootstrap_mean(shares, groups, settings, bounds=UNIT))
