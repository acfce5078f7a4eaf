"""Pairs to token ids with character offsets, made once per data set and tokenizer."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shallow_signals.data.pairs import PAIRS
from shallow_signals.files import InputError
from shallow_signals.models.templates import (
    Bos,
    Template,
    conversation_text,
    prompt_ids,
    prompt_text,
    read_template,
)

BATCH = 1000  # pairs tokenised at a time: bounds the memory that lists of offsets take

_IDS = pa.list_(pa.int32())
TOKENS = pa.schema(
    [
        *[field for field in PAIRS if field.name not in ("prompt", "chosen", "rejected")],
        ("prompt_ids", _IDS),  # the template's rendering with the generation prompt; BOS once or never
        ("chosen", pa.string()),  # the response as the template keeps it
        ("chosen_ids", _IDS),  # the response's own tokens
        ("chosen_starts", _IDS),  # in characters of the response
        ("chosen_ends", _IDS),
        ("rejected", pa.string()),
        ("rejected_ids", _IDS),
        ("rejected_starts", _IDS),
        ("rejected_ends", _IDS),
    ]
)


def tokenize_pairs(pairs: pa.Table, tokenizer: Any, bos: Bos) -> tuple[pa.Table, dict[str, Any]]:
    """Tokenise pairs (schema `PAIRS`) to the schema `TOKENS`; `closing_ids` and `strips` stand in its metadata as JSON.

    Each response is tokenised by itself. Offsets tile the text and overlap where a character is made of several tokens
    (see `data.truncate`). The second value counts: `pairs` read; `tokenized`; `boundary_merges`, pairs where prompt,
    response and closing, each by itself, give other ids than the template's whole rendering; `system_folded`; and lists
    under `left_out` the pairs that could not be tokenised, with a reason.
    """
    template = read_template(tokenizer, bos)
    parts: list[pa.Table] = []
    counts: dict[str, Any] = {"pairs": pairs.num_rows, "tokenized": 0, "boundary_merges": 0, "system_folded": 0}
    left_out: list[dict[str, str]] = []
    for start in range(0, pairs.num_rows, BATCH):
        part, merged, folded = _tokenize_batch(pairs.slice(start, BATCH), tokenizer, template, left_out)
        parts.append(part)
        counts["tokenized"] += part.num_rows
        counts["boundary_merges"] += merged
        counts["system_folded"] += folded
    metadata = {"closing_ids": json.dumps(template.closing_ids), "strips": json.dumps(template.strips)}
    table = pa.concat_tables(parts) if parts else TOKENS.empty_table()
    return table.replace_schema_metadata(metadata), {**counts, "left_out": left_out}


def _tokenize_batch(
    pairs: pa.Table, tokenizer: Any, template: Template, left_out: list[dict[str, str]]
) -> tuple[pa.Table, int, int]:
    """Tokens of one batch, the number of pairs with a boundary merge and the number with a folded system turn."""
    kept: list[int] = []
    prompts: list[str] = []
    wholes: dict[str, list[str]] = {"chosen": [], "rejected": []}
    texts: dict[str, list[str]] = {"chosen": [], "rejected": []}
    folded = 0
    rows = pairs.select(["pair_id", "prompt", *texts]).to_pylist()
    for index, row in enumerate(rows):
        responses = {side: row[side].strip() if template.strips else row[side] for side in texts}
        try:
            for side, text in responses.items():
                if not text:
                    raise InputError(f"{side} is empty" + (" after stripping" if row[side] else ""))
            prompt = prompt_text(tokenizer, template, row["prompt"])
            whole = {side: conversation_text(tokenizer, template, row["prompt"], row[side]) for side in texts}
        except InputError as error:
            left_out.append({"pair_id": row["pair_id"], "reason": str(error)})
            continue
        kept.append(index)
        prompts.append(prompt)
        for side in texts:
            texts[side].append(responses[side])
            wholes[side].append(whole[side])
        folded += not template.has_system and any(turn["role"] == "system" for turn in row["prompt"])

    prompt_lists = prompt_ids(tokenizer, template, prompts)
    columns: dict[str, Any] = {"prompt_ids": pa.array(prompt_lists, _IDS)}
    merged = np.zeros(len(kept), bool)
    unique = dict.fromkeys([*texts["chosen"], *texts["rejected"]])  # responses recur: each is tokenised once
    encoded = _encode(tokenizer, list(unique))
    place = {text: number for number, text in enumerate(unique)}
    for side in texts:
        rows_of = pa.array([place[text] for text in texts[side]], pa.int64())
        columns[side] = pa.array(texts[side], pa.string())
        for name, values in zip(("ids", "starts", "ends"), encoded, strict=True):
            columns[f"{side}_{name}"] = values.take(rows_of)
        expected = prompt_ids(tokenizer, template, wholes[side])
        for number, response in enumerate(columns[f"{side}_ids"].to_pylist()):
            merged[number] |= [*prompt_lists[number], *response, *template.closing_ids] != expected[number]
    same = pairs.take(pa.array(kept, pa.int64()))
    arrays = [columns[field.name] if field.name in columns else same[field.name] for field in TOKENS]
    return pa.table(arrays, schema=TOKENS), int(merged.sum()), folded


def _encode(tokenizer: Any, texts: list[str]) -> tuple[pa.ListArray, pa.ListArray, pa.ListArray]:
    """Ids, starts and ends of each text's tokens."""
    if not texts:
        empty = pa.array([], _IDS)
        return empty, empty, empty
    batch = tokenizer(
        texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    lengths = np.array([len(ids) for ids in batch["input_ids"]], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.fromiter(chain.from_iterable(batch["input_ids"]), np.int32, offsets[-1])
    flat = chain.from_iterable(chain.from_iterable(batch["offset_mapping"]))
    spans = np.fromiter(flat, np.int64, 2 * offsets[-1]).reshape(-1, 2)
    starts, ends = _tile(spans, lengths, np.array([len(text) for text in texts], np.int64))

    def lists(values: NDArray[Any]) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()))

    return lists(ids), lists(starts), lists(ends)


def _tile(
    spans: NDArray[np.int64], lengths: NDArray[np.int64], text_lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets that tile each text, whatever the tokenizer reports for white space and for parts of a character.

    Some tokenizers trim white space from offsets (it then belongs to the token after it), and a token that only carries
    on a character may be reported with no width (it is made to overlap its predecessor, so that no cut falls between).
    """
    base = np.repeat(np.cumsum(text_lengths) - text_lengths, lengths)  # as if all texts stood behind one another
    last = np.cumsum(lengths)[lengths > 0] - 1
    first = last - lengths[lengths > 0] + 1
    starts, ends = spans[:, 0] + base, spans[:, 1] + base
    ends[last] = base[last] + text_lengths[lengths > 0]
    ends = np.maximum.accumulate(ends) if len(ends) else ends
    starts = np.where(starts >= ends, ends - 1, starts)
    before = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    starts = np.minimum(starts, before)
    starts[first] = base[first]
    return starts - base, ends - base
