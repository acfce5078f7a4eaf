"""Rank shift against a plain forward pass and sorting, and where there can be none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from shallow_signals.config.statistics import Statistics
from shallow_signals.files import InputError
from shallow_signals.signal.position_table import COLUMNS
from shallow_signals.signal.ranks import RankReadings, rank_rows, read_ranks, sample_texts
from shallow_signals.signal.ratios import clusters_of
from two_models import next_logps, some_prompts, two_models

SETTINGS = Statistics(resamples=200)
PAIRS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints that disagree, and scored pairs of a data set, half of them held out."""
    folder = tmp_path_factory.mktemp("ranks")
    policy, reference = two_models("llama3", folder, spread=0.03)
    policy.save_pretrained(folder / "policy")
    reference.save_pretrained(folder / "reference")
    ids = [f"pair{i}" for i in range(PAIRS)]
    texts = {name: some_prompts(PAIRS, seed) for seed, name in enumerate(("prompt_ids", "chosen_ids", "rejected_ids"))}
    pq.write_table(pa.table({"pair_id": ids, "cluster": ids, **texts}), folder / "logprobs.parquet")
    splits = ["test" if i % 2 else "train" for i in range(PAIRS)]
    pq.write_table(pa.table({"pair_id": ids, "split": splits}), folder / "tokens.parquet")
    return folder


def frame(found: RankReadings, positions: list[int]) -> pd.DataFrame:
    return pd.DataFrame(rank_rows(found, positions, SETTINGS), columns=COLUMNS)


def share(table: pd.DataFrame, measure: str, axis: str, x: int) -> float:
    rows = table[(table["measure"] == measure) & (table["axis"] == axis) & (table["x"] == x)]
    return float(rows["value"].iloc[0])


def test_ranks_equal_a_plain_pass_and_a_sort(folder: Path) -> None:
    sample = sample_texts(folder / "logprobs.parquet", folder / "tokens.parquet", "test", 4)
    found = read_ranks(sample, [folder / "policy"], folder / "reference", torch.float32)
    from transformers import AutoModelForCausalLM

    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / name).eval() for name in ("policy", "reference"))
    responses = [(prompt, response) for prompt, both in sample.texts for response in both]
    assert len(responses) == len(found.runs[0]) == len(found.clusters) == 8
    for (prompt, response), ranks in zip(responses, found.runs[0], strict=True):
        plain = []
        for t in range(len(response)):
            ids = [*prompt, *response[:t]]
            best = int(next_logps(policy, ids).argmax())
            order = next_logps(reference, ids)[0].argsort(descending=True).tolist()
            plain.append(order.index(best) + 1)
        assert ranks.tolist() == plain
    assert {1} < set(np.concatenate(found.runs[0]).tolist())  # some agree, and some do not


def test_a_model_is_unshifted_from_itself(folder: Path) -> None:
    sample = sample_texts(folder / "logprobs.parquet", folder / "tokens.parquet", "all", 99)
    assert len(sample.texts) == PAIRS
    table = frame(read_ranks(sample, [folder / "reference"], folder / "reference", torch.float32), [1, 2, 5])
    assert set(table[table["measure"] == "unshifted"]["value"]) == {1.0}
    assert set(table[table["measure"].isin(["marginal", "shifted"])]["value"]) == {0.0}
    shifted = frame(read_ranks(sample, [folder / "policy"], folder / "reference", torch.float32), [1, 2, 5])
    assert share(shifted, "unshifted", "whole", 0) < 0.95


def test_a_sample_is_held_out_and_the_same_whatever_the_order(folder: Path, tmp_path: Path) -> None:
    tokens = folder / "tokens.parquet"
    sample = sample_texts(folder / "logprobs.parquet", tokens, "test", 4)
    assert len(set(sample.clusters)) == 4
    assert {int(name.removeprefix("pair")) % 2 for name in sample.clusters} == {1}
    turned = pq.read_table(folder / "logprobs.parquet").take(list(range(PAIRS))[::-1])
    pq.write_table(turned, tmp_path / "turned.parquet")
    again = sample_texts(tmp_path / "turned.parquet", tokens, "test", 4)
    assert again.clusters == sample.clusters[::-1]
    assert again.texts == sample.texts[::-1]
    pq.write_table(turned.take(list(range(1, PAIRS, 2))), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet: holds no test pairs"):
        clusters_of(tmp_path / "train.parquet", tokens, "test")


def test_shares_survivors_and_floor_of_a_hand_made_reading() -> None:
    ranks = [np.array(values, np.int32) for values in ([9, 1, 1, 1, 1, 2, 1, 4], [4, 2, 3, 1], [1], [5, 3, 1, 1])]
    table = frame(RankReadings([ranks], list("aabb")), [1, 2, 6])
    assert [share(table, name, "position", 1) for name in ("unshifted", "marginal", "shifted")] == [0.25, 0, 0.75]
    assert share(table, "marginal", "position", 2) == pytest.approx(2 / 3)
    assert [share(table, "survivors", "position", t) for t in (1, 2, 6, 8)] == [1, 0.75, 0.25, 0.25]
    # The last quarter holds two tokens of the first response and one of each other.
    assert share(table, "shifted", "last_quarter", 75) == pytest.approx((0.5 + 0 + 0 + 0) / 4)
    assert share(table, "shifted", "whole", 0) == pytest.approx((2 / 8 + 1 / 4 + 0 + 1 / 4) / 4)
