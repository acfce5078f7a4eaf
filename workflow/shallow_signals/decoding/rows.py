"""Rows of a batch: picked, told apart, and in pieces that a CPU's cache holds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]
Rows = TypeVar("Rows", Tensor, NDArray[Any])
_PIECE = 1 << 16  # numbers worked on at once on a CPU


def all_in_order(rows: Indices, count: int) -> bool:
    """Whether `rows` are 0, 1, ... `count` - 1."""
    return len(rows) == count and rows.tobytes() == _in_order(count)  # a fifth of the time of comparing numbers


@cache
def _in_order(count: int) -> bytes:
    return np.arange(count, dtype=np.int64).tobytes()


def pick(values: Tensor, rows: Indices) -> Tensor:
    """Some rows; the tensor itself where that is all of them in order."""
    if all_in_order(rows, len(values)):
        return values
    return values.index_select(0, torch.from_numpy(rows).to(values.device))


def argmax(values: Tensor) -> Tensor:
    """The place of each row's largest number, int64 [rows], of a tensor without gradients."""
    if values.device.type == "cpu" and values.dtype == torch.float32:
        return torch.from_numpy(values.numpy().argmax(-1))  # torch's own takes eight times as long
    return values.argmax(-1)


def distinct(keys: Sequence[Hashable]) -> tuple[Indices, Indices]:
    """Where each distinct key stands first, [distinct], and every key's number among these, [keys]."""
    numbers: dict[Hashable, int] = {}
    first: list[int] = []
    number_of = np.empty(len(keys), dtype=np.int64)
    for i, key in enumerate(keys):
        number = numbers.setdefault(key, len(first))
        if number == len(first):
            first.append(i)
        number_of[i] = number
    return np.array(first, dtype=np.int64), number_of


def in_pieces(rows: Rows, vocabulary: int, device: torch.device) -> list[Rows]:
    """The rows in pieces: on a CPU as many as its cache holds with a number for every token, elsewhere all at once."""
    size = max(1, _PIECE // vocabulary if device.type == "cpu" else len(rows))
    return [rows[start : start + size] for start in range(0, len(rows), size)]
