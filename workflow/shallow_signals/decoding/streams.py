"""Random numbers by counter: each depends on its seed, prompt, sample and position, never on what is drawn beside it.

A stream is one (seed, prompt, sample); its numbers are Philox4x32-10 of (position, block, purpose) under the stream's
key. So a response comes out the same whatever batch, order or machine part it is drawn in, and all strategies draw
from the same numbers, which is what makes their comparison paired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]
TOKENS, ESTIMATES = 0, 1  # purposes: drawing the next token; estimating a KL
RADIX = 32  # branches of a node in `draw_tokens`
_TOP = 64  # at most this many nodes at the root's level
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def stream_key(seed: int, prompt_id: str, sample: int) -> int:
    """The 64-bit key of a stream."""
    text = f"{seed}\x1f{prompt_id}\x1f{sample}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "little")


def uniforms(keys: Sequence[int], positions: Sequence[int], draws: int, purpose: int = TOKENS) -> NDArray[np.float64]:
    """Numbers in [0, 1) with 53 random bits, [keys, positions, draws]; positions are 1-based, as in the paper."""
    key = np.array(keys, dtype=np.uint64).reshape(-1, 1, 1)
    position = np.array(positions, dtype=np.uint64).reshape(1, -1, 1)
    block = np.arange((draws + 1) // 2, dtype=np.uint64).reshape(1, 1, -1)
    shape = np.broadcast_shapes(key.shape, position.shape, block.shape)
    counter = [position, block, np.array(purpose, dtype=np.uint64), np.zeros(1, dtype=np.uint64)]
    words = philox([np.broadcast_to(c, shape) for c in counter], key & _LOW, key >> _SHIFT)
    # Two words make one number: 27 bits of the first and 26 of the second.
    pairs = [(words[i] >> np.uint64(5)) * np.uint64(1 << 26) + (words[i + 1] >> np.uint64(6)) for i in (0, 2)]
    numbers = np.stack(pairs, axis=-1).astype(np.float64) * 2.0**-53
    return numbers.reshape(*shape[:2], -1)[..., :draws]


def philox(counter: Sequence[Words], key_low: Words, key_high: Words) -> list[Words]:
    """Philox4x32-10 (Salmon et al. 2011): four output words of 32 bits for four counter words; all held in uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key_low, key_high
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & _LOW, (k1 + np.uint64(0xBB67AE85)) & _LOW
    return [c0, c1, c2, c3]


def draws_needed(vocabulary: int) -> int:
    """How many uniform numbers `draw_tokens` takes for one token."""
    levels, width = 1, vocabulary
    while width > _TOP:
        width = -(-width // RADIX)
        levels += 1
    return levels


def draw_tokens(logps: Tensor, numbers: Tensor) -> Tensor:
    """One token a row, int64 [rows], from log-probabilities [rows, vocabulary] and numbers [rows, `draws_needed`].

    Inverse CDF by descent in a tree over the vocabulary, with a number of its own at every level. A single cumulative
    sum over the whole vocabulary would let the rounding of another batch size (1e-7) move every one of its boundaries
    past tokens rarer than that; here only a few dozen boundaries lie between a row and its token. Sums are float32, the
    comparisons float64.
    """
    levels = [logps.exp()]
    while levels[-1].shape[1] > _TOP:
        below = levels[-1]
        # Node g of the level above stands for the tokens g, g + w, g + 2w, ...: sums over a leading axis are fast.
        width = -(-below.shape[1] // RADIX)
        if short := width * RADIX - below.shape[1]:
            below = torch.nn.functional.pad(below, (0, short))
        levels[-1] = below.view(len(below), RADIX, width)
        levels.append(levels[-1].sum(1))
    token = _pick(levels[-1], numbers[:, 0])
    rows = torch.arange(len(token), device=token.device)
    for depth, level in enumerate(reversed(levels[:-1]), start=1):
        token = token + level.shape[2] * _pick(level[rows, :, token], numbers[:, depth])
    return token


def _pick(weights: Tensor, numbers: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds number x total; never one of weight zero."""
    cumulated = weights.double().cumsum(-1)
    target = numbers[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, target, right=True)[:, 0]
