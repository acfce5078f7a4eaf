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
from shallow_signals.decoding.rows import Indices, all_in_order

_ROOM = 128  # positions by which a layer's memory grows


class RowLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, [rows, heads, positions, head size], written in place.

    In use are the first rows and positions of a larger memory. transformers' own layer is copied whole at every token,
    which for small models costs as much as the model.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take type, device and shape from the first keys and values."""
        super().lazy_initialization(key_states, value_states)
        self.rows, self.length = len(key_states), 0
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add new positions; all positions so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.length, self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            self._grow(self.rows, end + _ROOM)
        self.length = end
        keys, values = self.keys[: self.rows, :, :end], self.values[: self.rows, :, :end]
        keys[:, :, start:], values[:, :, start:] = key_states, value_states
        return keys, values

    def get_seq_length(self) -> int:
        """Positions so far."""
        return self.length if self.is_initialized else 0

    def rearrange(self, sources: Tensor, moved: Tensor) -> None:
        """Go on with `len(sources)` rows: those numbered `moved` become copies of their sources, the others stay."""
        if not self.is_initialized:
            return
        if len(sources) > len(self.keys):
            self._grow(len(sources) * 3 // 2, self.keys.shape[2])
        for memory in (self.keys, self.values):
            used = memory[:, :, : self.length]
            used.index_copy_(0, moved, used.index_select(0, sources[moved]))
        self.rows = len(sources)

    def _grow(self, rows: int, places: int) -> None:
        self.keys, self.values = (self._grown(old, rows, places) for old in (self.keys, self.values))

    def _grown(self, old: Tensor, rows: int, places: int) -> Tensor:
        new = old.new_empty(rows, old.shape[1], places, old.shape[3])
        new[: self.rows, :, : self.length] = old[: self.rows, :, : self.length]
        return new


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
        """What the attention of one more token adds, [rows, 1, 1, end], 0 or minus infinity: a part of an earlier one.

        Given True and False, torch would turn them into these in every layer.
        """
        if self.mask is None or self.mask.shape[-1] < end:
            held = self._mask(end + _ROOM)[:, None, None]
            self.mask = torch.where(held, 0.0, -torch.inf).to(self.side.base.dtype)
        return self.mask[..., :end]

    def follow(self, parents: Indices, tokens: Tensor, wanted: NDArray[np.bool_]) -> None:
        """Go on with new histories: history i is `parents[i]` and then `tokens[i]`; unwanted ones are let go for good.

        A row stays where it is for the first history that continues it, and is copied for others into the places of
        rows that nothing continues.
        """
        kept = np.flatnonzero(wanted)
        rows = places = self.row_of[parents[kept]]
        if len(rows) != len(parents) or not all_in_order(rows, len(self.pads)):
            places = _places(rows)
            order = np.argsort(places)  # of the new histories, as their rows stand
            tokens = tokens[torch.from_numpy(kept[order]).to(tokens.device)]
            self._rearrange(rows[order])
        self.pending = torch.cat([self.pending, tokens[:, None]], dim=1) if self.pending.shape[1] else tokens[:, None]
        self.row_of = np.full(len(parents), -1, dtype=np.int64)
        self.row_of[kept] = places

    def _rearrange(self, sources: Indices) -> None:
        """Go on with rows that continue `sources`, one each."""
        moved = np.flatnonzero(sources != np.arange(len(sources)))
        if not len(moved) and len(sources) == len(self.pads):
            return
        chosen, copies = (torch.from_numpy(rows).to(self.pads.device) for rows in (sources, moved))
        self.pads, self.pending, self.mask = self.pads[chosen], self.pending[chosen], None
        for layer in self.cache.layers:
            layer.rearrange(chosen, copies)


def _places(rows: Indices) -> Indices:
    """A row for each history that continues one of `rows`: its own for the first to do so, where there is room."""
    found, first = np.unique(rows, return_index=True)
    staying = found < len(rows)
    places = np.full(len(rows), -1, dtype=np.int64)
    places[first[staying]] = found[staying]
    places[places < 0] = np.setdiff1d(np.arange(len(rows)), found[staying])
    return places
