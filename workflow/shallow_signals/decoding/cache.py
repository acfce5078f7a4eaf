"""What a model has read of each history, kept so that a new token costs one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from shallow_signals.decoding.kl import log_probs
from shallow_signals.decoding.pair import Side
from shallow_signals.decoding.rows import Indices

_ROOM = 128  # positions by which a layer's memory grows


class RowLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, [rows, heads, positions, head size], written in place.

    transformers' own layer is copied whole at every token, which for small models costs as much as the model.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take type, device and shape from the first keys and values."""
        super().lazy_initialization(key_states, value_states)
        self.length = 0
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add new positions; all positions so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            self.keys, self.values = self._grown(self.keys, end), self._grown(self.values, end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grown(self, old: Tensor, end: int) -> Tensor:
        rows, heads, _, size = old.shape
        new = old.new_empty(rows, heads, end + _ROOM, size)
        new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def get_seq_length(self) -> int:
        """Positions so far."""
        return self.length if self.is_initialized else 0

    def take(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be taken more than once."""
        if self.is_initialized:
            self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)


class Track:
    """One model's reading of a set of histories, which all have the same number of tokens after their prompts.

    Tokens wait in `pending` until the model's output is asked for: a model that isn't needed for some steps reads what
    it missed in one pass, and one that is never needed reads nothing.
    """

    def __init__(
        self, side: Side, prompts: Sequence[Sequence[int]], wanted: NDArray[np.bool_], device: torch.device
    ) -> None:
        """Start from the wanted ones of `prompts`, which are histories 0, 1, 2, ..."""
        kept = [prompt for prompt, keep in zip(prompts, wanted, strict=True) if keep]
        width = max([len(prompt) for prompt in kept], default=0)
        ids = np.zeros((len(kept), width), dtype=np.int64)
        for row, prompt in zip(ids, kept, strict=True):
            row[width - len(prompt) :] = prompt
        pads = np.array([width - len(prompt) for prompt in kept], dtype=np.int64)
        self.side = side
        self.cache: Any = Cache(layer_class_to_replicate=RowLayer)
        self.pending = torch.from_numpy(ids).to(device)  # [rows, waiting]
        self.pads = torch.from_numpy(pads[:, None]).to(device)  # [rows, 1] places on the left that hold nothing
        self.mask: Tensor | None = None  # for one more token, with room for some to come
        self.row_of: Indices = np.where(wanted, np.cumsum(wanted) - 1, -1)  # of each history; -1: not followed

    def read(self) -> Tensor:
        """Log-probabilities of the next token after each row, float32 [rows, vocabulary]."""
        start = self.cache.get_seq_length() if len(self.cache) else 0
        end = start + self.pending.shape[1]
        if start and end == start + 1 and self.side.takes_masks:
            mask, positions = self._step_mask(end), start - self.pads
        else:
            mask = self._mask(end).long()
            positions = (torch.arange(start, end, device=self.pads.device) - self.pads).clamp_(min=0)
        logits = self.side(self.pending, positions, mask, self.cache)
        self.pending = self.pending[:, :0]
        return log_probs(logits)

    def _mask(self, end: int) -> Tensor:
        """Which places hold a token, [rows, end]."""
        return torch.arange(end, device=self.pads.device) >= self.pads

    def _step_mask(self, end: int) -> Tensor:
        """The same as the attention of one more token wants it, [rows, 1, 1, end]: a part of what was made before."""
        if self.mask is None or self.mask.shape[-1] < end:
            self.mask = self._mask(end + _ROOM)[:, None, None]
        return self.mask[..., :end]

    def follow(self, parents: Indices, tokens: Tensor, wanted: NDArray[np.bool_]) -> None:
        """Go on with new histories: history i is `parents[i]` and then `tokens[i]`; unwanted ones are let go for good.

        Finished histories fall out, forked ones are copied.
        """
        kept = np.flatnonzero(wanted)
        rows = self.row_of[parents[kept]]
        if len(rows) != len(self.pads) or not np.array_equal(rows, np.arange(len(rows))):
            chosen = torch.from_numpy(rows).to(self.pads.device)
            self.pads, self.pending, self.mask = self.pads[chosen], self.pending[chosen], None
            for layer in self.cache.layers:
                layer.take(chosen)
        if len(kept) != len(parents):
            tokens = tokens[torch.from_numpy(kept).to(tokens.device)]
        self.pending = torch.cat([self.pending, tokens[:, None]], dim=1) if self.pending.shape[1] else tokens[:, None]
        self.row_of = np.full(len(parents), -1, dtype=np.int64)
        self.row_of[kept] = np.arange(len(kept))
