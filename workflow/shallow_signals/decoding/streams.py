"""Random numbers by counter: each depends on its seed, prompt, sample and position, never on what is drawn beside it.

A stream is one (seed, prompt, sample). Its numbers at a position are Philox4x32-10 of (position, block, purpose) under
the stream's key; where every token of a vocabulary needs one, Philox seeds SplitMix64. So a response comes out the same
in whatever batch and order it is drawn, and all strategies draw from the same numbers, which pairs their comparison.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shallow_signals.decoding.rows import argmax, in_pieces

Words = NDArray[np.uint64]
TOKENS, ESTIMATES = 0, 1  # purposes: drawing the next token; estimating a KL
_GAMMA = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number
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


def seeds(keys: Sequence[int], positions: Sequence[int]) -> Tensor:
    """A 64-bit number for each stream and 1-based position, int64 [keys, positions]: the start of `exponentials`."""
    key = np.array(keys, dtype=np.uint64).reshape(-1, 1)
    position = np.broadcast_to(np.array(positions, dtype=np.uint64), (len(key), len(positions)))
    nothing = np.zeros_like(position)
    low, high, _, _ = philox([position, nothing, nothing + np.uint64(TOKENS), nothing], key & _LOW, key >> _SHIFT)
    return torch.from_numpy((low | high << _SHIFT).view(np.int64))


def splitmix(start: Tensor, count: int) -> Tensor:
    """The first `count` outputs of SplitMix64 from each 64-bit state, int64 [states, count] (Steele et al. 2014)."""
    z = start[:, None] + _GAMMA * torch.arange(1, count + 1, device=start.device)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        z ^= (z >> shift).bitwise_and_((1 << (64 - shift)) - 1)  # shifts of signed numbers bring in their sign
        z *= factor
    z ^= (z >> 31).bitwise_and_((1 << 33) - 1)
    return z


def exponentials(start: Tensor, vocabulary: int) -> Tensor:
    """Exponential variates, float32 [states, vocabulary]: each output of SplitMix64 makes two, of 31 bits."""
    pieces = []
    for states in in_pieces(start, vocabulary, start.device):
        halves = splitmix(states, (vocabulary + 1) // 2).view(torch.int32)[:, :vocabulary]
        uniform = halves.bitwise_and(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
        pieces.append(uniform.neg_().log1p_().neg_())
    return torch.cat(pieces) if len(pieces) != 1 else pieces[0]


def draw_tokens(probabilities: Tensor, race: Tensor) -> Tensor:
    """One token a row, int64 [rows], from probabilities and `exponentials`, [rows, vocabulary] each.

    A race: the token of the largest p / exponential wins, which each does with its probability. Two distributions that
    race with the same exponentials part in at most twice their total variation distance, near the best any coupling
    does; with one number and a cumulative sum they part several times as often, and rounding alone can part them.
    """
    return argmax(probabilities / race)
