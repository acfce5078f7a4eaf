"""Rows that branch: several continuations of one text in one forward pass, each blind to the others.

A row of a batch is a tree of segments. A segment continues its parent after the parent's first `keep` tokens; it sees
what those tokens see, those tokens, and itself, causally. Sharing a prompt between two responses is a tree, and so is
appending the end of turn after every cut of a response. A row of one segment is an ordinary causal row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shallow_signals.files import InputError
from shallow_signals.models.attention import GROUPED

# Of a batch that is only read, padding included. What a layer makes of 1,024 tokens stays in a CPU's caches: reading
# takes a fifth less time than with 4,096, for a model of 135M parameters and for a tiny one alike.
TOKEN_BUDGET = {"cuda": 32768, "cpu": 1024}


@dataclass(frozen=True)
class Segment:
    """A run of tokens that continues an earlier segment of its row, or starts a text of its own."""

    ids: Sequence[int]  # may be empty
    parent: int | None = None  # index of an earlier segment of the row
    keep: int | None = None  # it continues after the parent's first `keep` tokens; None: all of them


Row = Sequence[Segment]


@dataclass
class TreeBatch:
    """What a model needs for one forward pass over rows of segments, padded on the right."""

    input_ids: Tensor  # int64 [rows, width]
    attention_mask: Tensor  # bool [rows, 1, width, width]; True: the query (third axis) may attend to the key (last)
    position_ids: Tensor  # int64 [rows, width]
    starts: list[list[int]]  # index in the row of each segment's first token (for an empty one: where it would stand)

    def to(self, device: torch.device | str) -> TreeBatch:
        """The same batch with its tensors on `device`."""
        return TreeBatch(
            self.input_ids.to(device), self.attention_mask.to(device), self.position_ids.to(device), self.starts
        )

    def model_inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of a model's forward."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


def row_length(row: Row) -> int:
    """The number of tokens of a row."""
    return sum(len(segment.ids) for segment in row)


def padded_width(longest: int) -> int:
    """The width of a batch whose longest row has that many tokens (at least 1): the next round number.

    It is a sixteenth more at most, below 128 tokens the next multiple of 8. Few widths occur then, for each of which a
    CPU compiles its kernels anew, and none that is slow in attention.
    """
    step = 1 << max(3, longest.bit_length() - 5)
    return -(-longest // step) * step


def batch_rows(rows: Sequence[Row], pad_id: int) -> TreeBatch:
    """Lay out rows of segments as one batch, padded to the `padded_width` of its longest row.

    Pad positions attend to themselves only, so that no softmax is over nothing; nothing else attends to them, whatever
    `pad_id` is. A wrong `parent` or `keep` is a `ValueError`.
    """
    width = padded_width(max([row_length(row) for row in rows] + [1]))
    most = max([len(row) for row in rows] + [1])
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    owner = np.full((len(rows), width), -1, dtype=np.int64)  # the segment of each token; -1: padding
    offset = np.zeros((len(rows), width), dtype=np.int64)  # of each token within its segment
    limits = np.zeros((len(rows), most, most), dtype=np.int64)  # how many tokens of each ancestor a segment sees
    starts: list[list[int]] = []
    for r, row in enumerate(rows):
        start = 0
        row_starts: list[int] = []
        first_positions: list[int] = []
        for s, segment in enumerate(row):
            position = 0
            if segment.parent is not None:
                keep = _checked_keep(row, s)
                limits[r, s] = limits[r, segment.parent]
                limits[r, s, segment.parent] = keep
                position = first_positions[segment.parent] + keep
            size = len(segment.ids)
            end = start + size
            if size:
                ids[r, start:end] = segment.ids
                steps = np.arange(size)
                positions[r, start:end] = steps + position
                offset[r, start:end] = steps
                owner[r, start:end] = s
            row_starts.append(start)
            first_positions.append(position)
            start = end
        starts.append(row_starts)
    mask = _mask(torch.from_numpy(owner), torch.from_numpy(offset), torch.from_numpy(limits))
    return TreeBatch(torch.from_numpy(ids), mask, torch.from_numpy(positions), starts)


def refuse_unsupported(model: torch.nn.Module) -> None:
    """Raise `InputError` if `model` can't read a four-dimensional mask and given positions as they are meant.

    FlashAttention takes no such mask. A model that mixes several masks (sliding windows or chunks beside full
    attention) would use the one given for all of its layers.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    name = getattr(config, "_name_or_path", "") or type(model).__name__
    kernel = config._attn_implementation
    if kernel not in ("sdpa", "eager", GROUPED):
        raise InputError(f"{name}: attention '{kernel}' can't share prompts; set attention sdpa or share_prompt false")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = None if getattr(config, "layer_types", None) else getattr(config, "sliding_window", None)
    if kinds != {"full_attention"} or window is not None:
        what = ", ".join(sorted(kinds - {"full_attention"})) or f"a sliding window of {window} tokens"
        raise InputError(f"{name}: its attention needs several masks ({what}), so prompts can't be shared in a row")


def fitted_inputs(model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The forward's arguments with a boolean mask as numbers that attention adds to its scores.

    Eager attention would add a boolean one as ones and zeros; SDPA reads it as meant, but turns it into numbers again
    in every layer.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.dtype != torch.bool:
        return dict(inputs)
    kind = next(model.parameters()).dtype
    added = torch.zeros(mask.shape, dtype=kind, device=mask.device).masked_fill_(~mask, torch.finfo(kind).min)
    return {**inputs, "attention_mask": added}


def _checked_keep(row: Row, index: int) -> int:
    """How many of its parent's tokens the segment at `index` continues."""
    parent, keep = row[index].parent, row[index].keep
    if parent is None or not 0 <= parent < index:
        raise ValueError(f"segment {index}: its parent {parent} is no earlier segment of the row")
    size = len(row[parent].ids)
    if keep is not None and not 0 <= keep <= size:
        raise ValueError(f"segment {index}: keep {keep} lies outside its parent's 0 to {size} tokens")
    return size if keep is None else keep


def _mask(owner: Tensor, offset: Tensor, limits: Tensor) -> Tensor:
    """Bool [rows, 1, width, width] from each token's segment, its place in it and what each segment sees."""
    rows, width = owner.shape
    padding = owner < 0
    column = owner.clamp(min=0)
    # What a segment sees of the others is the same for all its tokens: a [rows, segments, width] table, then a lookup.
    seen = offset[:, None, :] < limits.gather(2, column[:, None, :].expand(-1, limits.shape[1], -1))
    seen &= ~padding[:, None, :]
    mask = seen[torch.arange(rows)[:, None], column]
    small = owner.to(torch.int32)
    own = small[:, :, None] == small[:, None, :]
    own &= torch.ones(width, width, dtype=torch.bool).tril_()
    mask |= own
    mask &= ~padding[:, :, None]
    mask.diagonal(dim1=1, dim2=2).fill_(True)
    return mask[:, None]
