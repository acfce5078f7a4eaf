"""Tokens against the tokenizer's own bytes and the template's own rendering."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import pre_tokenizers, processors
from transformers import AutoTokenizer

import checkpoints
from realdata import ARGUMENTS, HARMLESS, RMB, pair_row, pairs_table, real_pairs, smollm2
from shallow_signals.models.tokens import TOKENS, tokenize_pairs

SIDES = ("chosen", "rejected")
USER = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    folder = tmp_path_factory.mktemp("checkpoints")

    def load(name: str) -> Any:
        if not (folder / name).exists():
            getattr(checkpoints, name)(folder / name)
        return AutoTokenizer.from_pretrained(folder / name)

    return load


def piece_bytes(tokenizer: Any) -> Callable[[list[int]], bytes]:
    """The bytes that byte-level tokens stand for, by GPT-2's published table of stand-in letters."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in plain}
    table |= {chr(256 + n): byte for n, byte in enumerate(b for b in range(256) if b not in plain)}
    return lambda ids: bytes(table[letter] for token in tokenizer.convert_ids_to_tokens(ids) for letter in token)


def check_offsets(tokenizer: Any, text: str, ids: list[int], starts: list[int], ends: list[int]) -> int:
    """Hold the offsets against the tokens' bytes; return how many boundaries lie inside a character."""
    to_bytes = piece_bytes(tokenizer)
    data = text.encode()
    assert to_bytes(ids) == data
    assert (starts[0], ends[-1]) == (0, len(text))
    sizes = np.cumsum([len(to_bytes([token])) for token in ids])
    inside = 0
    for cut in range(1, len(ids)):
        try:
            front = data[: sizes[cut - 1]].decode()
        except UnicodeDecodeError:
            inside += 1
            assert starts[cut] < ends[cut - 1]
        else:
            assert starts[cut] == ends[cut - 1] == len(front)
    return inside


@pytest.mark.parametrize("file", [HARMLESS, ARGUMENTS, RMB])
def test_offsets_and_rendering_on_real_text(shared_data: Path, file: str) -> None:
    tokenizer = smollm2()
    pairs = real_pairs(shared_data, file, 60)
    tokens, counts = tokenize_pairs(pairs, tokenizer, "auto")
    assert tokens.schema.equals(TOKENS)
    assert tokens["pair_id"] == pairs["pair_id"]
    assert counts == {**counts, "pairs": 60, "tokenized": 60, "system_folded": 0, "left_out": []}
    inside = differ = 0
    for pair, row in zip(pairs.to_pylist(), tokens.to_pylist(), strict=True):
        merged = False
        for side in SIDES:
            ids = row[f"{side}_ids"]
            assert row[side] == pair[side]
            inside += check_offsets(tokenizer, row[side], ids, row[f"{side}_starts"], row[f"{side}_ends"])
            whole = [*pair["prompt"], {"role": "assistant", "content": pair[side]}]
            own = tokenizer.apply_chat_template(whole, tokenize=True)["input_ids"]
            merged |= [*row["prompt_ids"], *ids, 2, 198] != own
        differ += merged
    assert counts["boundary_merges"] == differ
    assert inside > 0 or file != RMB  # the check has met characters of several tokens


@pytest.mark.parametrize(("name", "ids"), [("chatml", 2), ("llama3", 1), ("gemma", 2)])
def test_metadata(checkpoint: Callable[[str], Any], name: str, ids: int) -> None:
    tokenizer = checkpoint(name)
    tokens, _ = tokenize_pairs(pairs_table([pair_row([USER], "Yes.", "No.")]), tokenizer, "auto")
    closing = json.loads(tokens.schema.metadata[b"closing_ids"])
    assert len(closing) == ids
    whole = [USER, {"role": "assistant", "content": "Yes."}]
    own = tokenizer.apply_chat_template(whole, tokenize=True)["input_ids"]
    row = tokens.to_pylist()[0]
    assert row["prompt_ids"] + row["chosen_ids"] + closing == own
    assert json.loads(tokens.schema.metadata[b"strips"]) == (name != "chatml")


def test_boundary_merges_are_counted() -> None:
    rows = [  # the prompt ends in a line break: with two more SmolLM2 takes the first two for one token
        pair_row([USER], "\n\nYes.", "No."),
        pair_row([USER], "Yes.", "No."),
        pair_row([USER], "Yes.", "\n\nNo."),
    ]
    _, counts = tokenize_pairs(pairs_table(rows), smollm2(), "auto")
    assert counts["boundary_merges"] == 2
    _, counts = tokenize_pairs(pairs_table(rows[1:2]), smollm2(), "auto")
    assert counts["boundary_merges"] == 0


def test_stripping_templates_strip_the_responses(checkpoint: Callable[[str], Any]) -> None:
    rows = [pair_row([USER], "  Yes.\n", "No."), pair_row([USER], " \n\t", "No."), pair_row([USER], "Yes.", "")]
    for name in ("llama3", "gemma"):
        tokens, counts = tokenize_pairs(pairs_table(rows), checkpoint(name), "auto")
        assert tokens["chosen"].to_pylist() == ["Yes."]
        assert tokens["chosen_ends"].to_pylist()[0][-1] == 4
        assert counts["left_out"] == [
            {"pair_id": rows[1]["pair_id"], "reason": "chosen is empty after stripping"},
            {"pair_id": rows[2]["pair_id"], "reason": "rejected is empty"},
        ]
        assert counts["boundary_merges"] == 0
    tokens, counts = tokenize_pairs(pairs_table(rows), checkpoint("chatml"), "auto")
    assert tokens["chosen"].to_pylist() == ["  Yes.\n", " \n\t"]
    assert [row["pair_id"] for row in counts["left_out"]] == [rows[2]["pair_id"]]
    assert counts["pairs"] == counts["tokenized"] + len(counts["left_out"])


def test_system_turns_are_folded_and_refusals_listed(checkpoint: Callable[[str], Any]) -> None:
    two_users = pair_row([USER, USER], "Yes.", "No.")
    table = pairs_table([pair_row([SYSTEM, USER], "Yes.", "No."), pair_row([USER], "Yes.", "No."), two_users])
    tokens, counts = tokenize_pairs(table, checkpoint("gemma"), "auto")
    assert (counts["system_folded"], counts["tokenized"], counts["boundary_merges"]) == (1, 2, 0)
    assert counts["left_out"][0]["pair_id"] == two_users["pair_id"]
    assert "must alternate" in counts["left_out"][0]["reason"]
    assert "Be brief.\n\nHello" in checkpoint("gemma").decode(tokens["prompt_ids"][0].as_py())
    _, counts = tokenize_pairs(table, checkpoint("llama3"), "auto")
    assert (counts["system_folded"], counts["tokenized"]) == (0, 3)


def test_bos_never(checkpoint: Callable[[str], Any]) -> None:
    table = pairs_table([pair_row([USER], "Yes.", "No.")])
    tokenizer = checkpoint("llama3")
    once, _ = tokenize_pairs(table, tokenizer, "auto")
    never, counts = tokenize_pairs(table, tokenizer, "never")
    ids = once["prompt_ids"][0].as_py()
    assert ids.count(tokenizer.bos_token_id) == 1
    assert never["prompt_ids"][0].as_py() == ids[1:]
    assert counts["boundary_merges"] == 0


def test_recurring_texts_and_batches_change_nothing(
    checkpoint: Callable[[str], Any], shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = checkpoint("chatml")
    pairs = real_pairs(shared_data, HARMLESS, 20)
    swapped = pairs.rename_columns({"chosen": "rejected", "rejected": "chosen"}).select(pairs.column_names)
    table = pa.concat_tables([pairs, swapped, pairs])
    together, _ = tokenize_pairs(table, tokenizer, "auto")
    monkeypatch.setattr("shallow_signals.models.tokens.BATCH", 7)
    apart, _ = tokenize_pairs(table, tokenizer, "auto")
    assert together.equals(apart)
    assert together["chosen_ids"][20:40].to_pylist() == together["rejected_ids"][:20].to_pylist()
    for row in together.to_pylist():
        for side in SIDES:
            assert row[f"{side}_ids"] == tokenizer(row[side], add_special_tokens=False)["input_ids"]


def test_trimmed_offsets_tile_the_text(checkpoint: Callable[[str], Any]) -> None:
    tokenizer = checkpoint("chatml")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    text = " a good  day 🙂\n\n and déjà vu "
    raw = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert any(start > end for (_, end), (start, _) in itertools.pairwise(raw))  # the tokenizer leaves gaps
    tokens, _ = tokenize_pairs(pairs_table([pair_row([USER], text, "No.")]), tokenizer, "auto")
    row = tokens.to_pylist()[0]
    starts, ends = row["chosen_starts"], row["chosen_ends"]
    assert (starts[0], ends[-1]) == (0, len(text))
    assert all(start <= end for start, end in zip(starts[1:], ends, strict=False))
    to_bytes = piece_bytes(tokenizer)
    sizes = np.cumsum([len(to_bytes([token])) for token in row["chosen_ids"]])
    for cut in range(1, len(sizes)):  # a cut inside a character is never taken for a possible one
        if "\ufffd" in text.encode()[: sizes[cut - 1]].decode(errors="replace"):
            assert starts[cut] < ends[cut - 1]


def test_no_pairs(checkpoint: Callable[[str], Any]) -> None:
    for rows in ([], [pair_row([USER], "", "No.")]):
        tokens, counts = tokenize_pairs(pairs_table(rows), checkpoint("chatml"), "auto")
        assert tokens.num_rows == counts["tokenized"] == 0
        assert tokens.schema.names == TOKENS.names
