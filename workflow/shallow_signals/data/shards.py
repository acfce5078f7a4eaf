"""Truncated training and test sets as Parquet shards that datasets, TRL, OpenRLHF and RLHFlow read as they are.

A shard has no column named `prompt` or `margin`: TRL would put a `prompt` in front of message lists that hold it
already, and TRL and OpenRLHF would train with a `margin` that the recipe does not have. The prompt is `chosen` without
its last turn; margins stand with the pairs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shallow_signals.config.truncation import Truncation
from shallow_signals.data.pairs import PAIRS, half_of, uniform_hash
from shallow_signals.data.truncate import kept_characters, kept_range, nominal_range
from shallow_signals.files import InputError, read_parquet, write_json, write_parquet

Retokenize = Callable[[list[str]], list[list[int]]]
SPLITS = ("train", "test")
_METADATA = (b"closing_ids", b"strips")

_IDS = pa.list_(pa.int32())
_MESSAGES = PAIRS.field("prompt").type
SHARDS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("cluster", pa.string()),
        ("subset", pa.string()),
        ("chosen", _MESSAGES),  # the prompt's turns and the cut response
        ("rejected", _MESSAGES),
        ("prompt_tokens", _IDS),
        ("chosen_tokens", _IDS),  # of the cut response, without closing
        ("rejected_tokens", _IDS),
        ("chosen_length", pa.int32()),  # tokens kept
        ("rejected_length", pa.int32()),
        ("chosen_full_length", pa.int32()),
        ("rejected_full_length", pa.int32()),
    ]
)


@dataclass(frozen=True)
class _Response:
    """One response after the cut."""

    text: str
    ids: NDArray[np.int32]
    full_length: int
    is_cut: bool  # something was left out
    moved: bool = False  # the cut fell inside a character


def write_shards(
    tokens: Path,
    pairs: Path,
    truncation: Truncation,
    out: Path,
    retokenize: Retokenize,
    rows_per_shard: int = 20_000,
) -> dict[str, Any]:
    """Cut every response; write `train-*.parquet`, `test-*.parquet` (schema `SHARDS`) and `manifest.json` into `out`.

    `tokens` has the schema `models.tokens.TOKENS`, `pairs` is the file that it was made of; `retokenize` gives the ids
    of texts without BOS and closing. Windows lie at the same relative place in both responses of a pair. Pairs that are
    equal after the cut are left out. `pairs50` keeps whole training pairs, in the order of a hash, for as long as their
    response tokens fit into those of `head50`; `half1` and `half2` keep the training pairs of one half of the prompts
    each, by hash; `shuffled1` swaps chosen and rejected in about half of the training pairs. Returns the manifest (see
    `_summary` for its counts). Raises `InputError` if no training pair is left, `ValueError` for truncations that are
    for scoring only.
    """
    if truncation.kind == "topshare":
        raise ValueError(f"'{truncation.name}' is for scoring only")
    metadata = _metadata(tokens)
    counts = {split: Counter[str]() for split in SPLITS}
    parts: dict[str, list[pa.Table]] = {split: [SHARDS.empty_table()] for split in SPLITS}
    budget = 0
    for batch in _batches(tokens, pairs):
        for split in SPLITS:
            table = batch.filter(pc.equal(batch["split"], split))
            if truncation.kind == "half" and split == "train":
                table = _one_half(table, truncation.number, counts[split])
            parts[split].append(_cut_pairs(table, truncation, retokenize, metadata["strips"], counts[split], split))
            if truncation.kind == "pairs" and split == "train":
                budget += _kept_tokens(table, replace(truncation, kind="cut"))
    tables = {split: pa.concat_tables(parts[split]) for split in SPLITS}
    if truncation.kind == "pairs":
        tables["train"] = _within_budget(tables["train"], budget, counts["train"])
    if counts["train"]["pairs"] and not tables["train"].num_rows:
        raise InputError(f"{tokens}: after the cut '{truncation.name}' no training pair is left; keep more")
    for old in [*out.glob("train-*.parquet"), *out.glob("test-*.parquet")]:
        old.unlink()
    for split, table in tables.items():
        files = -(-table.num_rows // rows_per_shard)
        for number in range(files):
            shard = table.slice(number * rows_per_shard, rows_per_shard)
            write_parquet(out / f"{split}-{number:05d}-of-{files:05d}.parquet", shard)
    splits = {split: _summary(tables[split], counts[split]) for split in SPLITS}
    manifest = {"truncation": truncation.name, **metadata, "splits": splits}
    write_json(out / "manifest.json", manifest)
    return manifest


def _metadata(tokens: Path) -> dict[str, Any]:
    """`closing_ids` and `strips` of a tokens file."""
    schema = read_parquet(tokens, ["pair_id"]).schema
    found = {name.decode(): json.loads(value) for name, value in (schema.metadata or {}).items() if name in _METADATA}
    for name in _METADATA:
        if name.decode() not in found:
            raise InputError(f"{tokens}: metadata '{name.decode()}' is missing; make the tokens again")
    return found


def _batches(tokens: Path, pairs: Path, rows: int = 5_000) -> Iterator[pa.Table]:
    """The rows of a tokens file with the prompts of their pairs; in parts, so that few offsets are held at a time."""
    prompts = read_parquet(pairs, ["pair_id", "prompt"])
    for batch in pq.ParquetFile(tokens).iter_batches(rows):
        table = pa.Table.from_batches([batch])
        where = pc.index_in(table["pair_id"], value_set=prompts["pair_id"])
        if where.null_count:
            raise InputError(f"{pairs}: {where.null_count} pair_id of {tokens} are missing; make the tokens again")
        yield table.append_column("prompt", prompts["prompt"].take(where))


def _cut_pairs(
    table: pa.Table, truncation: Truncation, retokenize: Retokenize, strips: bool, counts: Counter[str], split: str
) -> pa.Table:
    """The shard rows of a part of one split; adds to `counts`."""
    by_characters = truncation.unit == "char"
    chosen, rejected = (
        _cut_by_characters(table, side, truncation, retokenize)
        if by_characters
        else _cut_by_tokens(table, side, truncation)
        for side in ("chosen", "rejected")
    )
    kept = [row for row in range(table.num_rows) if not _collapsed(chosen[row], rejected[row])]
    counts["pairs"] += table.num_rows
    counts["collapsed"] += table.num_rows - len(kept)
    table = table.take(pa.array(kept, pa.int64()))
    chosen, rejected = [chosen[row] for row in kept], [rejected[row] for row in kept]
    for response in [*chosen, *rejected]:
        counts["cut"] += response.is_cut
        counts["moved"] += response.moved
        counts["stripped"] += strips and response.is_cut and response.text != response.text.strip()
    if not by_characters:
        counts["retokenized"] += _retokenized_differently([*chosen, *rejected], retokenize)
    if truncation.kind == "shuffled" and split == "train":
        for row, pair in enumerate(table["pair_id"].to_pylist()):
            if uniform_hash("shuffle", truncation.number, pair) < 0.5:
                chosen[row], rejected[row] = rejected[row], chosen[row]
                counts["swapped"] += 1
    columns: dict[str, Any] = {
        **{name: table[name] for name in ("pair_id", "cluster", "subset")},
        "prompt_tokens": table["prompt_ids"],
    }
    for side, responses in (("chosen", chosen), ("rejected", rejected)):
        columns[side] = _conversations(table["prompt"], [response.text for response in responses])
        lengths = [len(response.ids) for response in responses]
        values = np.concatenate([np.empty(0, np.int32), *[response.ids for response in responses]])
        columns[f"{side}_tokens"] = pa.ListArray.from_arrays(_offsets(lengths), pa.array(values), type=_IDS)
        columns[f"{side}_length"] = pa.array(lengths, pa.int32())
        columns[f"{side}_full_length"] = pa.array([response.full_length for response in responses], pa.int32())
    return pa.table([columns[name] for name in SHARDS.names], schema=SHARDS)


def _collapsed(chosen: _Response, rejected: _Response) -> bool:
    """Nothing is left to tell the responses apart by."""
    return chosen.text == rejected.text or np.array_equal(chosen.ids, rejected.ids)


def _cut_by_tokens(table: pa.Table, side: str, truncation: Truncation) -> list[_Response]:
    """Whole characters of the response's own tokens."""
    texts, id_lists = table[side].to_pylist(), _lists(table[f"{side}_ids"])
    if truncation.keeps_text:
        return [_Response(text, ids, len(ids), is_cut=False) for text, ids in zip(texts, id_lists, strict=True)]
    starts, ends = _lists(table[f"{side}_starts"]), _lists(table[f"{side}_ends"])
    others = pc.list_value_length(table["rejected_ids" if side == "chosen" else "chosen_ids"]).to_pylist()
    responses = []
    for row, key in enumerate(table["pair_id"].to_pylist()):
        text, ids, start, end = texts[row], id_lists[row], starts[row], ends[row]
        asked = nominal_range(truncation, len(ids), other_tokens=others[row], key=key)
        first, last = kept_range(truncation, start, end, len(text), other_tokens=others[row], key=key)
        part = text[start[first] : end[last - 1]]
        is_cut = last - first < len(ids)
        responses.append(_Response(part, ids[first:last], len(ids), is_cut, moved=(first, last) != asked))
    return responses


def _cut_by_characters(table: pa.Table, side: str, truncation: Truncation, retokenize: Retokenize) -> list[_Response]:
    """Exact characters; the ids are those of the kept text."""
    texts, full_lengths = table[side].to_pylist(), pc.list_value_length(table[f"{side}_ids"]).to_pylist()
    parts = []
    for text, key in zip(texts, table["pair_id"].to_pylist(), strict=True):
        begin, end = kept_characters(truncation, len(text), key=key)
        parts.append(text[begin:end])
    return [
        _Response(part, np.array(ids, np.int32), full_length, is_cut=len(part) < len(text))
        for text, part, ids, full_length in zip(texts, parts, retokenize(parts), full_lengths, strict=True)
    ]


def _retokenized_differently(responses: list[_Response], retokenize: Retokenize) -> int:
    """How many cut responses get other ids when their kept text is tokenised by itself."""
    cut = [response for response in responses if response.is_cut]
    again = retokenize([response.text for response in cut])
    return sum(response.ids.tolist() != ids for response, ids in zip(cut, again, strict=True))


def _kept_tokens(table: pa.Table, truncation: Truncation) -> int:
    """Response tokens that a cut by tokens leaves in the pairs that differ after it."""
    sides = (_cut_by_tokens(table, side, truncation) for side in ("chosen", "rejected"))
    pairs = zip(*sides, strict=True)
    return sum(len(chosen.ids) + len(rejected.ids) for chosen, rejected in pairs if not _collapsed(chosen, rejected))


def _within_budget(table: pa.Table, budget: int, counts: Counter[str]) -> pa.Table:
    """As many pairs, in the order of a hash, as `budget` response tokens hold; at least one. Rows keep their order."""
    if not table.num_rows:
        return table
    draws = [uniform_hash("pairs", pair) for pair in table["pair_id"].to_pylist()]
    order = np.argsort(draws, kind="stable")
    lengths = pc.add(table["chosen_length"], table["rejected_length"]).to_numpy().astype(np.int64)
    pairs = max(1, int(np.searchsorted(np.cumsum(lengths[order]), budget, side="right")))
    counts["budget_tokens"] = budget
    counts["over_budget"] = table.num_rows - pairs
    return table.take(np.sort(order[:pairs]))


def _one_half(table: pa.Table, number: int, counts: Counter[str]) -> pa.Table:
    """The pairs of the first (1) or second (2) half of the prompts."""
    mine = [half_of(prompt) == number for prompt in table["prompt_id"].to_pylist()]
    counts["other_half"] += mine.count(False)
    counts["pairs"] += mine.count(False)
    return table.filter(pa.array(mine, pa.bool_()))


def _conversations(prompts: pa.ChunkedArray, responses: list[str]) -> pa.ListArray:
    """Message lists: each prompt's turns and then its response as the assistant's."""
    lists = prompts.combine_chunks() if isinstance(prompts, pa.ChunkedArray) else prompts
    turns = lists.flatten()
    rows = len(responses)
    ends = np.cumsum(pc.list_value_length(lists).to_numpy())
    answers = pa.array([{"role": "assistant", "content": text} for text in responses], _MESSAGES.value_type)
    order = np.insert(np.arange(len(turns)), ends, len(turns) + np.arange(rows))
    values = pa.concat_arrays([turns, answers]).take(pa.array(order, pa.int64()))
    lengths = pc.add(pc.list_value_length(lists), 1).to_numpy()
    return pa.ListArray.from_arrays(_offsets(lengths), values, type=_MESSAGES)


def _offsets(lengths: Sequence[int] | NDArray[np.int32]) -> pa.Array:
    """Where lists of these lengths start in their common values, and the end of the last."""
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _lists(column: pa.ChunkedArray) -> list[NDArray[np.int32]]:
    """A column of lists as one NumPy array per row."""
    if not len(column):
        return []
    ends = np.cumsum(pc.list_value_length(column).to_numpy())
    return np.split(pc.list_flatten(column).to_numpy(), ends[:-1])


def _summary(table: pa.Table, counts: Counter[str]) -> dict[str, Any]:
    """The manifest's counts of one split. Those of responses cover the pairs that differ after the cut."""
    sides = ("chosen", "rejected")

    def total(kind: str) -> int:
        return sum(int(pc.sum(table[f"{side}_{kind}"]).as_py() or 0) for side in sides)

    summary = {
        "pairs": counts["pairs"],
        "collapsed": counts["collapsed"],
        "written": table.num_rows,
        "kept_tokens": total("length"),
        "full_tokens": total("full_length"),
        "responses_cut": counts["cut"],
        "moved_for_a_character": counts["moved"],
        "retokenized_differently": counts["retokenized"],
        "stripped_by_the_template": counts["stripped"],
    }
    optional = ("swapped", "budget_tokens", "over_budget", "other_half")
    return summary | {name: counts[name] for name in optional if name in counts}
