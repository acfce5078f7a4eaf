"""Pairs as token ids, cut to the recipe's length, and their layout as rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from shallow_signals.files import InputError, read_parquet
from shallow_signals.models.tree import Row, Segment, batch_rows, padded_width


@dataclass(frozen=True)
class PairIds:
    """One pair as a model reads it; the responses end with the closing where the recipe keeps it."""

    prompt: Sequence[int]
    chosen: Sequence[int]  # at least one token
    rejected: Sequence[int]  # at least one token
    rejected_prompt: Sequence[int] | None = None  # set where the cut to length left the rejected another prompt

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> PairIds:
        """The pair of a row of `read_pairs`' data set."""
        return cls(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"], row["rejected_prompt_ids"])


@dataclass(frozen=True)
class PairBatch:
    """A micro-batch: the forward's arguments, and where each response ends."""

    inputs: dict[str, Tensor]
    chosen: Tensor  # int64 [pairs, 2]: row and index of each chosen response's last token
    rejected: Tensor  # likewise

    def __len__(self) -> int:
        return len(self.chosen)


def cut_pair(
    prompt: Sequence[int],
    chosen: Sequence[int],
    rejected: Sequence[int],
    closing: Sequence[int],
    max_length: int,
    bos_id: int | None = None,
) -> PairIds:
    """Append `closing` to both responses and cut each whole text on the left to `max_length` tokens.

    A leading `bos_id` survives the cut, as it does where a tokenizer cuts before it adds it.
    """
    first = _cut_left(prompt, [*chosen, *closing], max_length, bos_id)
    second = _cut_left(prompt, [*rejected, *closing], max_length, bos_id)
    same = len(first[0]) == len(second[0])
    return PairIds(first[0], first[1], second[1], None if same else second[0])


def _cut_left(
    prompt: Sequence[int], response: Sequence[int], max_length: int, bos_id: int | None
) -> tuple[Sequence[int], Sequence[int]]:
    excess = len(prompt) + len(response) - max_length
    if excess <= 0:
        return prompt, response
    head = list(prompt[:1]) if bos_id is not None and list(prompt[:1]) == [bos_id] else []
    excess += len(head)
    return [*head, *prompt[excess:]], response[max(excess - len(prompt), 0) :]


def read_pairs(
    shards: Path, *, split: str = "train", closing: Sequence[int], max_length: int, bos_id: int | None = None
) -> tuple[datasets.Dataset, int]:
    """The pairs of a folder of shards as a data set, and how many of them were cut on the left.

    Its columns are `prompt_ids`, `chosen_ids`, `rejected_ids` and `rejected_prompt_ids` (null where both responses
    follow the same prompt). `closing` is empty where the recipe drops the end of turn.
    """
    files = sorted(shards.glob(f"{split}-*.parquet"))
    if not files:
        raise InputError(f"{shards}: holds no {split}-*.parquet")
    columns: dict[str, list[Any]] = {
        name: [] for name in ("prompt_ids", "chosen_ids", "rejected_ids", "rejected_prompt_ids")
    }
    over_long = 0
    for file in files:
        table = read_parquet(file, ["prompt_tokens", "chosen_tokens", "rejected_tokens"])
        for prompt, chosen, rejected in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if not chosen or not rejected:
                raise InputError(f"{file}: row {len(columns['prompt_ids'])} has an empty response")
            over_long += len(prompt) + max(len(chosen), len(rejected)) + len(closing) > max_length
            pair = cut_pair(prompt, chosen, rejected, closing, max_length, bos_id)
            columns["prompt_ids"].append(pair.prompt)
            columns["chosen_ids"].append(pair.chosen)
            columns["rejected_ids"].append(pair.rejected)
            columns["rejected_prompt_ids"].append(pair.rejected_prompt)
    if not columns["prompt_ids"]:
        raise InputError(f"{shards}: its {split} files hold no pairs")
    ids = datasets.Sequence(datasets.Value("int32"))
    return datasets.Dataset.from_dict(columns, datasets.Features(dict.fromkeys(columns, ids))), over_long


def pair_rows(pair: PairIds, share_prompt: bool) -> list[Row]:
    """One row that branches after the prompt, or two plain ones: chosen first.

    Two also where the responses follow different prompts.
    """
    if share_prompt and pair.rejected_prompt is None:
        return [[Segment(pair.prompt), Segment(pair.chosen, parent=0), Segment(pair.rejected, parent=0)]]
    prompt = pair.prompt if pair.rejected_prompt is None else pair.rejected_prompt
    return [
        [Segment(pair.prompt), Segment(pair.chosen, parent=0)],
        [Segment(prompt), Segment(pair.rejected, parent=0)],
    ]


def batch_pairs(pairs: Sequence[PairIds], pad_id: int, share_prompt: bool) -> PairBatch:
    """Lay out a micro-batch. The index of a response's last token comes from its length, never from `pad_id`.

    Where no row branches the mask is the ordinary two-dimensional one, which every attention kernel takes.
    """
    rows: list[Row] = []
    chosen: list[tuple[int, int]] = []
    rejected: list[tuple[int, int]] = []
    for pair in pairs:
        laid_out = pair_rows(pair, share_prompt)
        ends = [(len(rows) + r, end) for r, row in enumerate(laid_out) for end in _ends(row)]
        chosen.append(ends[0])
        rejected.append(ends[1])
        rows += laid_out
    inputs = batch_rows(rows, pad_id).model_inputs() if share_prompt else _plain_inputs(rows, pad_id)
    return PairBatch(inputs, torch.tensor(chosen), torch.tensor(rejected))


@dataclass(frozen=True)
class Targets:
    """The response tokens of a micro-batch and where they are predicted; `where` ascends."""

    places: Tensor  # int64 [m]: indices of the flattened batch at which something is predicted
    where: Tensor  # int64 [n]: of each token its index in `places`
    tokens: Tensor  # int64 [n]
    responses: Tensor  # int64 [n]: 2 i for pair i's chosen response, 2 i + 1 for its rejected one

    def to(self, device: torch.device) -> Targets:
        """The same targets on `device`."""
        return Targets(*(values.to(device) for values in (self.places, self.where, self.tokens, self.responses)))


def response_targets(pairs: Sequence[PairIds], share_prompt: bool, width: int) -> Targets:
    """Every response token of a micro-batch that `batch_pairs` laid out in `width` columns.

    A token is predicted at the one before it, the first of a response at the prompt's last; after an empty prompt it is
    predicted nowhere and left out.
    """
    places: list[int] = []
    tokens: list[int] = []
    responses: list[int] = []
    line = side = 0
    for pair in pairs:
        for row in pair_rows(pair, share_prompt):
            prompt_end = len(row[0].ids) - 1
            for segment, end in zip(row[1:], _ends(row), strict=True):
                before = [prompt_end, *range(end - len(segment.ids) + 1, end)]
                skipped = prompt_end < 0
                places += [line * width + place for place in before[skipped:]]
                tokens += segment.ids[skipped:]
                responses += [side] * (len(segment.ids) - skipped)
                side += 1
            line += 1
    unique, where = np.unique(np.array(places, dtype=np.int64), return_inverse=True)
    order = np.argsort(where, kind="stable")
    ascending = (np.array(values, dtype=np.int64)[order] for values in (where, tokens, responses))
    return Targets(torch.from_numpy(unique), *map(torch.from_numpy, ascending))


def _ends(row: Row) -> list[int]:
    """The index of each response's last token in a row whose first segment is the prompt."""
    end = len(row[0].ids) - 1
    ends = []
    for segment in row[1:]:
        end += len(segment.ids)
        ends.append(end)
    return ends


def _plain_inputs(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """Rows without branches, padded on the right, with the ordinary mask [rows, width]."""
    texts = [[token for segment in row for token in segment.ids] for row in rows]
    width = padded_width(max(map(len, texts)))
    ids = [text + [pad_id] * (width - len(text)) for text in texts]
    lengths = torch.tensor([len(text) for text in texts])
    return {"input_ids": torch.tensor(ids), "attention_mask": (torch.arange(width) < lengths[:, None]).long()}


def row_shapes(pairs: datasets.Dataset, share_prompt: bool) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Of each pair the number of its rows and the length of the longest, int64 [pairs]; and the tokens of all rows."""
    table = pairs.data.table
    prompt, chosen, rejected, other = (
        pc.fill_null(pc.list_value_length(table[name]), -1).to_numpy().astype(np.int64)
        for name in ("prompt_ids", "chosen_ids", "rejected_ids", "rejected_prompt_ids")
    )
    shared = (other < 0) & share_prompt
    first = prompt + chosen
    second = np.where(other < 0, prompt, other) + rejected
    widths = np.where(shared, first + rejected, np.maximum(first, second))
    return np.where(shared, 1, 2), widths, int(np.where(shared, widths, first + second).sum())
