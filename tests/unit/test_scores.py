"""Scores at every cut, against scoring each cut response by itself with an ordinary padded forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from scored_pairs import CUTS, Family, by_test, columns, shards, tokens_file
from shallow_signals.evaluation import readings, scores
from shallow_signals.evaluation.score_runs import Scoring, score_benchmark, score_heldout
from shallow_signals.files import InputError, read_parquet, write_parquet
from shallow_signals.models import tree
from shallow_signals.training.pairs import cut_pair

CLOSINGS = {"chatml": ["<|im_end|>", "\n"], "llama3": ["<|eot_id|>"], "gemma": ["<end_of_turn>", "\n"]}


@pytest.mark.parametrize("end_of_turn", ["keep", "drop"])
def test_every_cut_equals_scoring_it_alone(family: Family, end_of_turn: str) -> None:
    closing = family.closing if end_of_turn == "keep" else []
    table = family.score(family.rows, closing=closing)
    assert table.schema == scores.SCORES
    assert table.num_rows == len(family.rows) * len(CUTS)  # 100% is the whole response
    for row in family.rows:
        found, expected = by_test(table, row["pair_id"]), family.expected(row, CUTS, closing)
        assert found.keys() == expected.keys()
        for test in expected:
            assert found[test] == pytest.approx(expected[test], abs=1e-4), (row["pair_id"], test)
    spread = columns(table).std()
    assert spread > 0.5  # against which 1e-4 is small


@pytest.mark.parametrize("end_of_turn", ["keep", "drop"])
def test_the_ids_that_are_read(family: Family, end_of_turn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact ids on the path from the row's start to the token whose score is read."""
    closing = family.tokenizer.convert_tokens_to_ids([t.replace("\n", "Ċ") for t in CLOSINGS[family.name]])
    assert closing == family.closing and len(closing) == (1 if family.name == "llama3" else 2)
    assert (family.closing[0] == family.tokenizer.pad_token_id) == (family.name == "chatml")
    if end_of_turn == "drop":
        closing = []
    read: list[list[int]] = []
    real = readings.read_scores

    def spy(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        for r, i in places.tolist():
            seen = [int(k) for k in batches[-1].attention_mask[r, 0, i].nonzero()[:, 0]]
            assert batches[-1].position_ids[r, seen].tolist() == list(range(len(seen)))
            read.append(batches[-1].input_ids[r, seen].tolist())
        return real(values, places)

    batches: list[tree.TreeBatch] = []

    def keep_batch(rows: Any, pad_id: int) -> tree.TreeBatch:
        batches.append(tree.batch_rows(rows, pad_id))
        return batches[-1]

    monkeypatch.setattr(readings, "batch_rows", keep_batch)
    monkeypatch.setattr(readings, "read_scores", spy)
    row = family.rows[0]
    family.score([row], closing=closing, cuts=[50, 100])
    halves = {side: row[side][: len(row[side]) // 2] for side in ("chosen_ids", "rejected_ids")}
    texts = [half for side in halves for half in (row[side], halves[side])]
    assert sorted(read) == sorted(row["prompt_ids"] + text + closing for text in texts)


def test_the_models_own_pooling_is_where_the_pad_id_allows(family: Family) -> None:
    """Where pad is no token of the closing, the model's own forward reads the same score."""
    row = family.rows[0]
    text = torch.tensor([row["prompt_ids"] + row["chosen_ids"] + family.closing])
    with torch.no_grad():
        own = float(family.model(input_ids=text).logits)
    found = family.score([row], cuts=[]).to_pylist()[0]
    assert found["test"] == "full"
    assert found["chosen"] == pytest.approx(own, abs=1e-4)


def test_a_bare_prefix_is_another_score(family: Family) -> None:
    """The negative control: reading where the closing was trained in, but not put, is far from the right score."""
    kept, bare = (family.score(family.rows, closing=closing) for closing in (family.closing, []))
    assert np.abs(columns(kept) - columns(bare)).mean() > 0.1


@pytest.mark.parametrize("leak", ["later tokens", "sibling", "position"])
def test_a_wrong_mask_is_noticed(family: Family, leak: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the comparison: branches that see too much, or stand elsewhere, give other scores."""

    def leaky(rows: Any, pad_id: int) -> tree.TreeBatch:
        batch = tree.batch_rows(rows, pad_id)
        if leak == "later tokens":
            rows = [[tree.Segment(s.ids, s.parent) for s in row] for row in rows]  # `keep` is forgotten
            wrong = tree.batch_rows(rows, pad_id)
            return tree.TreeBatch(batch.input_ids, wrong.attention_mask, batch.position_ids, batch.starts)
        if leak == "sibling":
            causal = torch.ones_like(batch.attention_mask).tril()
            return tree.TreeBatch(batch.input_ids, causal, batch.position_ids, batch.starts)
        places = torch.arange(batch.input_ids.shape[1]).expand_as(batch.position_ids)
        return tree.TreeBatch(batch.input_ids, batch.attention_mask, places, batch.starts)

    right = family.score(family.rows)
    monkeypatch.setattr(readings, "batch_rows", leaky)
    wrong = family.score(family.rows)
    assert np.abs(columns(right) - columns(wrong)).max() > 1e-2


def test_batch_size_and_order_change_nothing(family: Family) -> None:
    whole = family.score(family.rows, token_budget=10**6)
    for budget in (1, 300, 700):
        other = family.score(family.rows, token_budget=budget)
        assert np.abs(columns(whole) - columns(other)).max() < 1e-5
        assert other.drop_columns(["chosen", "rejected"]) == whole.drop_columns(["chosen", "rejected"])
    backwards = family.score(family.rows[::-1])
    assert backwards["pair_id"].to_pylist() == sorted(whole["pair_id"].to_pylist(), reverse=True)
    for row in family.rows:
        first, second = by_test(whole, row["pair_id"]), by_test(backwards, row["pair_id"])
        assert all(first[test] == pytest.approx(second[test], abs=1e-5) for test in first)


def test_one_token_and_no_prompt(family: Family) -> None:
    row = {**family.rows[0], "prompt_ids": [], "rejected_ids": family.rows[0]["rejected_ids"][:1]}
    for closing in (family.closing, []):
        table = family.score([row], closing=closing, cuts=[1, 50, 99])
        found, expected = by_test(table, "p0"), family.expected(row, [1, 50, 99], closing)
        assert all(found[test] == pytest.approx(expected[test], abs=1e-4) for test in expected)
        assert table["rejected_length"].to_pylist() == [1, 1, 1, 1]


def test_lengths_are_exact_floors(chatml: Family) -> None:
    """29% of 100 is 29 tokens; in binary floating point .29 x 100 falls short of 29."""
    assert int(0.29 * 100) == 28
    row = {**chatml.rows[0], "chosen_ids": [7] * 100, "rejected_ids": [8] * 7}
    table = chatml.score([row], cuts=[29, 5, 100, 58, 5])
    assert table["test"].to_pylist() == ["full", "cut05", "cut29", "cut58"]
    assert table["chosen_length"].to_pylist() == [100, 5, 29, 58]
    assert table["rejected_length"].to_pylist() == [7, 1, 2, 4]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("max_length", [9, 30, 45])
def test_long_texts_are_cut_as_in_training(family: Family, max_length: int, bos: bool) -> None:
    """Each (cut) text by itself loses tokens on the left, as training cuts pairs."""
    bos_id = family.tokenizer.bos_token_id if bos else None
    table = family.score(family.rows, max_length=max_length, bos_id=bos_id)
    cut_short = 0
    for row in family.rows:
        for test, found in by_test(table, row["pair_id"]).items():
            percent = 100 if test == "full" else int(test.removeprefix("cut"))
            halves = [row[side][: max(1, percent * len(row[side]) // 100)] for side in ("chosen_ids", "rejected_ids")]
            pair = cut_pair(row["prompt_ids"], *halves, family.closing, max_length, bos_id)
            second = pair.prompt if pair.rejected_prompt is None else pair.rejected_prompt
            texts = [[*pair.prompt, *pair.chosen], [*second, *pair.rejected]]
            assert all(len(text) <= max_length for text in texts)
            cut_short += sum(len(text) == max_length for text in texts)
            assert found == pytest.approx(family.alone(texts), abs=1e-4), (row["pair_id"], test)
    assert cut_short >= 5


def test_empty_response_is_refused(chatml: Family) -> None:
    with pytest.raises(InputError, match="p0: rejected has no tokens"):
        chatml.score([{**chatml.rows[0], "rejected_ids": []}])


def test_progress_ends_at_the_whole(chatml: Family) -> None:
    steps: list[tuple[int, int]] = []
    chatml.score(chatml.rows, token_budget=1, progress=lambda done, total: steps.append((done, total)))
    assert len(steps) == len(chatml.rows) and steps == sorted(steps) and steps[-1][0] == steps[-1][1]


# ---- files


@pytest.mark.parametrize("end_of_turn", ["keep", "drop"])
@pytest.mark.parametrize("keeps", ["heads", "tails", "both"])
def test_heldout_file(
    family: Family, tmp_path: Path, end_of_turn: Any, keeps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept beginnings are read with the whole responses, anything else by itself; each is the score of its own text."""
    halves = [
        {
            **row,
            **{
                side: ids[len(ids) // 3 :] if keeps == "tails" or (keeps == "both" and i) else ids[: 1 + len(ids) // 3]
                for side, ids in ((side, row[side]) for side in ("chosen_ids", "rejected_ids"))
            },
        }
        for i, row in enumerate(family.rows[1:])  # one pair collapsed
    ]
    passes: list[int] = []
    real = scores.read_layout
    monkeypatch.setattr(scores, "read_layout", lambda *given: passes.append(len(given[1].rows)) or real(*given))
    tokens = tokens_file(tmp_path / "tokens.parquet", family.rows, family.closing)
    full, kept = shards(tmp_path / "full", family.rows), shards(tmp_path / "head50", halves)
    scoring = Scoring(2048, end_of_turn, "float32", "flash_attention_2", [50, 100])
    score_heldout(family.folder, full, kept, tokens, scoring, tmp_path / "scores.parquet")
    table = read_parquet(tmp_path / "scores.parquet")
    assert table.schema == scores.SCORES
    assert table["test"].value_counts().to_pylist() == [
        {"values": "full", "counts": 4},
        {"values": "cut50", "counts": 4},
        {"values": "kept", "counts": 3},
    ]
    assert passes == {"heads": [4], "tails": [4, 3], "both": [4, 2]}[keeps]
    closing = family.closing if end_of_turn == "keep" else []
    for row, half in zip(family.rows[1:], halves, strict=True):
        found = by_test(table, row["pair_id"])
        alone = family.alone([half["prompt_ids"] + half[side] + closing for side in ("chosen_ids", "rejected_ids")])
        assert found["kept"] == pytest.approx(alone, abs=1e-4)
        expected = family.expected(row, [50], closing)
        assert found["full"] == pytest.approx(expected["full"], abs=1e-4)
        assert found["cut50"] == pytest.approx(expected["cut50"], abs=1e-4)
    score_heldout(family.folder, full, None, tokens, scoring, tmp_path / "whole.parquet")
    assert set(read_parquet(tmp_path / "whole.parquet")["test"].to_pylist()) == {"full", "cut50"}


def test_benchmark_file(chatml: Family, tmp_path: Path) -> None:
    rows = [{**row, "subset": f"s{i % 2}"} for i, row in enumerate(chatml.rows)]
    tokens = tokens_file(tmp_path / "tokens.parquet", rows, chatml.closing)
    scoring = Scoring(2048, "keep", "float32", "sdpa", [50])
    score_benchmark(chatml.folder, tokens, None, scoring, tmp_path / "all.parquet")
    every = read_parquet(tmp_path / "all.parquet")
    assert every["subset"].to_pylist() == ["s0", "s0", "s1", "s1"] * 2
    score_benchmark(chatml.folder, tokens, 2, scoring, tmp_path / "some.parquet")
    some = read_parquet(tmp_path / "some.parquet")
    assert set(some["subset"].to_pylist()) == {"s0", "s1"} and some.num_rows == 4
    for pair in set(some["pair_id"].to_pylist()):
        assert by_test(some, pair)["full"] == pytest.approx(by_test(every, pair)["full"], abs=1e-5)


def test_bfloat16_scores_are_not_rounded_to_ties(chatml: Family, tmp_path: Path) -> None:
    """The body computes in bfloat16, the head in float32: distinct texts keep distinct scores."""
    tokens = tokens_file(tmp_path / "tokens.parquet", chatml.rows, chatml.closing)
    score_benchmark(chatml.folder, tokens, None, Scoring(2048, "keep", "bfloat16", "sdpa", CUTS), tmp_path / "half")
    half = columns(read_parquet(tmp_path / "half")).ravel()
    exact = columns(chatml.score(chatml.rows)).ravel()
    assert 0 < np.abs(half - exact).max() < 0.2 * exact.std()
    rounded = torch.tensor(half).bfloat16().float().numpy()
    assert np.mean(rounded != half) > 0.9


def test_files_that_can_not_be_scored(chatml: Family, tmp_path: Path) -> None:
    scoring = Scoring(64, "keep", "float32", "sdpa", [])
    plain = tmp_path / "plain.parquet"
    write_parquet(plain, pa.Table.from_pylist(chatml.rows))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="closing_ids"):
        score_benchmark(chatml.folder, plain, None, scoring, tmp_path / "out")
    tokens = tokens_file(tmp_path / "tokens.parquet", chatml.rows, chatml.closing)
    with pytest.raises(InputError, match="no test pairs"):
        score_heldout(chatml.folder, tmp_path / "empty", None, tokens, scoring, tmp_path / "out")
    with pytest.raises(InputError, match=r"score\.weight is missing"):
        score_benchmark(chatml.folder.parent / "base", tokens, None, scoring, tmp_path / "out")
    assert not (tmp_path / "out").exists()
