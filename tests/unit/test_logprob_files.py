"""Scoring runs: their files, their resumption, and the references of DPO read off them, against TRL's own."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model

import checkpoints
import dpo_setup as dpo
from shallow_signals.config.recipes import DPORecipe
from shallow_signals.files import InputError, write_parquet
from shallow_signals.models import logprob_files
from shallow_signals.models.load import load_causal_lm, load_tokenizer
from shallow_signals.models.logprob_files import LOGPROBS, read_settings
from shallow_signals.models.templates import read_template
from shallow_signals.signal.logprob_files import read_logprobs, score_logprobs
from shallow_signals.training.dpo import train_dpo
from shallow_signals.training.pairs import PairIds, read_pairs
from shallow_signals.training.references import from_arrays

CUTS = [25, 50, 75, 100]
HOW: dict[str, Any] = {"cuts": CUTS, "max_length": 256, "compute": "float32"}


@pytest.fixture(scope="module", params=["llama3", "gemma"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose closing has one token or two, 30 pairs, their tokens and their log-probabilities."""
    folder = tmp_path_factory.mktemp(request.param)
    make: Callable[[Path], Path] = getattr(checkpoints, request.param)
    tokens = dpo.tokens_file(make(folder / "base"), dpo.conversations(30), folder)
    score_logprobs(folder / "base", tokens, folder / "logprobs.parquet", folder / "state", **HOW)
    return folder


def closing_of(base: Path, recipe: DPORecipe) -> tuple[int, ...]:
    return read_template(load_tokenizer(base), "auto").closing_ids if recipe.end_of_turn == "keep" else ()


def training_pairs(folder: Path, truncation: str, recipe: DPORecipe) -> tuple[Path, list[PairIds]]:
    """The shards of a truncation, and what training reads of them."""
    shards = folder / truncation
    if not shards.is_dir():
        dpo.cut_shards(folder / "base", folder / "tokens.parquet", truncation, shards)
    template = read_template(load_tokenizer(folder / "base"), "auto")
    bos_id = template.bos_ids[0] if template.bos_ids else None
    data, _ = read_pairs(
        shards, closing=closing_of(folder / "base", recipe), max_length=recipe.max_length, bos_id=bos_id
    )
    return shards, [PairIds.from_row(row) for row in data]


def test_a_file_says_what_was_read(folder: Path) -> None:
    path = folder / "logprobs.parquet"
    table, tokens = pq.read_table(path), pq.read_table(folder / "tokens.parquet")
    assert table.schema.remove_metadata() == LOGPROBS
    for name in ("pair_id", "cluster", "subset", "prompt_ids", "chosen_ids", "rejected_ids"):
        assert table[name].to_pylist() == tokens[name].to_pylist()
    settings = read_settings(path)
    assert settings["closing_ids"] == json.loads(tokens.schema.metadata[b"closing_ids"])
    assert (settings["cuts"], settings["max_length"], settings["compute"]) == (CUTS, 256, "float32")
    found = read_logprobs(path)
    assert list(found) == tokens["pair_id"].to_pylist()
    model = load_causal_lm(folder / "base")
    closing = list(settings["closing_ids"])
    for row in tokens.to_pylist()[:5]:
        pair = PairIds(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
        closed = PairIds(pair.prompt, [*pair.chosen, *closing], [*pair.rejected, *closing])
        with torch.no_grad():
            bare, whole = dpo.plain_logps(model, [pair])[0], dpo.plain_logps(model, [closed])[0]
        for side, scored in enumerate(found[row["pair_id"]]):
            assert scored.tokens.dtype == scored.closing.dtype == np.float32
            assert float(scored.tokens.sum()) == pytest.approx(float(bare[side]), abs=1e-4)
            assert scored.closing_at[-1] == len(scored.tokens)
            assert float(scored.tokens.sum() + scored.closing[-1]) == pytest.approx(float(whole[side]), abs=1e-4)


def test_a_part_of_the_pairs_and_a_cut_prompt(folder: Path, tmp_path: Path) -> None:
    tokens = pq.read_table(folder / "tokens.parquet")
    some = tokens["pair_id"].to_pylist()[3:9:2]
    base, out = folder / "base", tmp_path / "out.parquet"
    facts = score_logprobs(
        base, folder / "tokens.parquet", out, tmp_path, cuts=[], max_length=48, compute="float32", pair_ids=some
    )
    found = pq.read_table(out).to_pylist()
    assert [row["pair_id"] for row in found] == some
    assert facts["pairs"] == 3
    bos_id = load_tokenizer(base).bos_token_id
    for row in found:
        assert row["prompt_ids"][0] == bos_id and len(row["prompt_ids"]) < 48
    with pytest.raises(InputError, match="1 of the pair_ids"):
        score_logprobs(base, folder / "tokens.parquet", out, tmp_path, **HOW, pair_ids=[*some, "x"])
    with pytest.raises(InputError, match="no pairs to score in its test split"):
        score_logprobs(base, folder / "tokens.parquet", out, tmp_path, **HOW, split="test")
    with pytest.raises(InputError, match="closing_ids"):
        write_parquet(tmp_path / "bare.parquet", tokens.replace_schema_metadata(None))
        score_logprobs(base, tmp_path / "bare.parquet", out, tmp_path, **HOW)
    with pytest.raises(InputError, match="metadata 'logprobs'"):
        read_settings(folder / "tokens.parquet")


def test_an_adapter_is_switched_on(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    policy = get_peft_model(load_causal_lm(folder / "base"), settings)
    policy.save_pretrained(str(tmp_path / "adapter"))
    merged = policy.merge_and_unload()
    tokens = folder / "tokens.parquet"
    score_logprobs(folder / "base", tokens, tmp_path / "out", tmp_path, **HOW, adapter=tmp_path / "adapter")
    row = pq.read_table(tokens).to_pylist()[0]
    with torch.no_grad():
        pair = PairIds(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
        expected = dpo.plain_logps(merged, [pair])[0].tolist()
    found = [float(side.tokens.sum()) for side in read_logprobs(tmp_path / "out")[row["pair_id"]]]
    assert found == pytest.approx(expected, abs=1e-3)
    plain = [float(side.tokens.sum()) for side in read_logprobs(folder / "logprobs.parquet")[row["pair_id"]]]
    assert abs(plain[0] - found[0]) > 0.1


def score_and_die(folder: Path, out: Path, groups: int) -> None:
    """Runs in a process of its own, which kills itself when it would write one more group than `groups`."""
    logprob_files.GROUP = 8
    written = []

    def dying(path: Path, table: pa.Table) -> None:
        if len(written) == groups:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(path)
        write_parquet(path, table)

    logprob_files.write_parquet = dying  # type: ignore[attr-defined]
    score_logprobs(folder / "base", folder / "tokens.parquet", out, out.parent / "state", **HOW)


@pytest.mark.parametrize("folder", ["gemma"], indirect=True)
def test_a_killed_run_ends_with_the_same_bytes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 pairs in groups of 8."""
    monkeypatch.setattr(logprob_files, "GROUP", 8)
    whole = tmp_path / "whole.parquet"
    score_logprobs(folder / "base", folder / "tokens.parquet", whole, tmp_path / "other", **HOW)
    out = tmp_path / "killed" / "out.parquet"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    process = multiprocessing.get_context("spawn").Process(target=score_and_die, args=(folder, out, 2))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    assert len(list((tmp_path / "killed" / "state").glob("*/group-*.parquet"))) == 2
    score_logprobs(folder / "base", folder / "tokens.parquet", out, out.parent / "state", **HOW)
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "killed" / "state").exists()


@pytest.mark.parametrize("end_of_turn", ["keep", "drop"])
@pytest.mark.parametrize("truncation", ["full", "head50"])
def test_references_from_arrays_equal_those_of_trl(
    folder: Path, truncation: str, end_of_turn: str, tmp_path: Path
) -> None:
    settings = dpo.recipe(end_of_turn=end_of_turn)
    shards, pairs = training_pairs(folder, truncation, settings)
    closing = closing_of(folder / "base", settings)
    arrays = folder / "logprobs.parquet"
    found = from_arrays(shards, pairs, closing, arrays)
    expected = dpo.stock_references(folder / "base", pairs, tmp_path)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    moved = [PairIds(pair.prompt, [token + 1 for token in pair.chosen], pair.rejected) for pair in pairs]
    assert np.isnan(from_arrays(shards, moved, closing, arrays)).all()
    if closing:
        unclosed = from_arrays(
            shards, [open_pair(pair, len(closing)) for pair in pairs], (), folder / "logprobs.parquet"
        )
        assert np.abs(unclosed - expected).min() > 1e-3  # the closing's share is seen


def open_pair(pair: PairIds, closing: int) -> PairIds:
    return PairIds(pair.prompt, pair.chosen[:-closing], pair.rejected[:-closing])


@pytest.mark.parametrize(
    ("truncation", "changes", "read"),
    [
        ("full", {}, "all"),
        ("head50", {}, "all"),
        ("shuffled1", {}, "all"),
        ("pairs50", {}, "all"),
        ("head33", {"end_of_turn": "drop"}, "all"),
        ("head33", {}, "none"),  # a closing of two tokens was not read there; one of one token was, everywhere
        ("tail50", {}, "none"),
        ("full", {"max_length": 60}, "some"),
    ],
)
def test_what_arrays_cannot_tell_is_scored(
    folder: Path, truncation: str, changes: dict[str, Any], read: str, tmp_path: Path
) -> None:
    """Either way the first loss is ln 2 to 1e-3, or training would not start."""
    settings = dpo.recipe(**changes)
    shards, pairs = training_pairs(folder, truncation, settings)
    one_token = len(read_template(load_tokenizer(folder / "base"), "auto").closing_ids) == 1
    facts = train_dpo(
        shards, folder / "base", folder / "logprobs.parquet", settings, 0, tmp_path / "out", tmp_path / "state"
    )
    assert facts["references_read"] + facts["references_scored"] == facts["pairs"] == len(pairs)
    assert facts["first_loss"] == pytest.approx(math.log(2), abs=1e-5)
    if read == "all" or (truncation == "head33" and one_token):
        assert facts["references_scored"] == 0
    elif read == "none":
        assert facts["references_read"] == 0
    else:
        assert 0 < facts["references_read"] < len(pairs)
        assert facts["references_scored"] == facts["cut_on_the_left"]


def test_references_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    """Negative controls: another model's arrays, arrays shifted by one token, and another closing."""
    settings = dpo.recipe()
    shards, _ = training_pairs(folder, "full", settings)
    dpo.other_model(folder / "base").save_pretrained(tmp_path / "other")
    load_tokenizer(folder / "base").save_pretrained(tmp_path / "other")
    score_logprobs(tmp_path / "other", folder / "tokens.parquet", tmp_path / "other.parquet", tmp_path, **HOW)
    right = pq.read_table(folder / "logprobs.parquet")
    column = pa.array([values[1:] + values[:1] for values in right["chosen_logps"].to_pylist()], pa.list_(pa.float32()))
    head50, _ = training_pairs(folder, "head50", settings)
    shifted = right.set_column(right.schema.get_field_index("chosen_logps"), LOGPROBS.field("chosen_logps"), column)
    write_parquet(tmp_path / "shifted.parquet", shifted)
    for data, name in ((shards, "other"), (head50, "shifted")):
        with pytest.raises(InputError, match=rf"{name}.parquet: .* first DPO losses miss ln 2") as caught:
            train_dpo(
                data, folder / "base", tmp_path / f"{name}.parquet", settings, 0, tmp_path / "out", tmp_path / name
            )
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / name).glob("checkpoint-*"))
    settings_of = json.loads(right.schema.metadata[b"logprobs"]) | {"closing_ids": [1, 2, 3]}
    write_parquet(tmp_path / "closing.parquet", right.replace_schema_metadata({"logprobs": json.dumps(settings_of)}))
    with pytest.raises(InputError, match=r"read the closing \[1, 2, 3\]"):
        train_dpo(
            shards, folder / "base", tmp_path / "closing.parquet", settings, 0, tmp_path / "out", tmp_path / "closing"
        )
