"""Lengths of a data set's pairs, cut as a truncation cuts them, and laid out as rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shallow_signals.config.truncation import Truncation

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Lengths:
    """Tokens of a sample of pairs that stands for `pairs` of them; a closing of `closing` tokens ends each response."""

    prompt: Counts
    chosen: Counts
    rejected: Counts
    pairs: float
    closing: int
    half: NDArray[np.int64] | None = None  # of the prompts, 1 or 2, where the pairs themselves are known

    @property
    def weight(self) -> float:
        """How many pairs each of the sample stands for."""
        return self.pairs / len(self.prompt)


def cut(lengths: Lengths, truncation: Truncation) -> Lengths:
    """The pairs that a truncation's training set holds. Pairs that become equal are not foreseen."""
    chosen, rejected = lengths.chosen, lengths.rejected
    if truncation.kind == "pairs":
        share = _kept(chosen, truncation) + _kept(rejected, truncation)
        return replace(lengths, pairs=lengths.pairs * float(share.sum() / (chosen + rejected).sum()))
    if truncation.kind == "half":
        if lengths.half is None:
            return replace(lengths, pairs=lengths.pairs / 2)
        mine = lengths.half == truncation.number
        parts = {name: getattr(lengths, name)[mine] for name in ("prompt", "chosen", "rejected", "half")}
        return replace(lengths, **parts, pairs=lengths.pairs * float(mine.mean()))
    if truncation.kind == "min_length":
        shorter = np.minimum(chosen, rejected)
        return replace(lengths, chosen=shorter, rejected=shorter)
    if truncation.keeps_text:
        return lengths
    return replace(lengths, chosen=_kept(chosen, truncation), rejected=_kept(rejected, truncation))


def _kept(tokens: Counts, truncation: Truncation) -> Counts:
    """Tokens that a cut keeps; one by characters keeps about the same share of them, and four make a token."""
    if truncation.ratio is not None:
        return np.maximum(1.0, np.floor(float(truncation.ratio) * tokens + 1e-9))
    length = float(truncation.length or 0) / (4.0 if truncation.unit == "char" else 1.0)
    return np.minimum(tokens, np.maximum(1.0, length))


def texts(lengths: Lengths, closing: int, max_length: int) -> tuple[Counts, Counts]:
    """Tokens of both whole texts, at most `max_length` each."""
    first = lengths.prompt + lengths.chosen + closing
    second = lengths.prompt + lengths.rejected + closing
    return np.minimum(first, max_length), np.minimum(second, max_length)


def training_rows(lengths: Lengths, closing: int, max_length: int, share_prompt: bool) -> Counts:
    """Widths of the rows that training reads: one a pair where the prompt is shared and nothing is cut, else two."""
    first, second = texts(lengths, closing, max_length)
    if not share_prompt:
        return np.concatenate([first, second])
    whole = (first == lengths.prompt + lengths.chosen + closing) & (
        second == lengths.prompt + lengths.rejected + closing
    )
    return np.concatenate([(first + second - lengths.prompt)[whole], first[~whole], second[~whole]])


def scoring_rows(lengths: Lengths, branch: int, cuts: list[int], max_length: int) -> Counts:
    """Widths of the rows that one-pass scoring reads: prompt, both responses, and at each cut a branch.

    `branch` is how many tokens close a response at a cut (none where the closing is read off the response's own row).
    """
    width = lengths.prompt + lengths.chosen + lengths.rejected
    for response in (lengths.chosen, lengths.rejected):
        kept = np.stack([np.maximum(1, np.floor(c / 100 * response + 1e-9)) for c in {*cuts, 100}])
        places = (np.diff(np.sort(kept, axis=0), axis=0) > 0).sum(0) + 1  # cuts of one length are one place
        width = width + branch * places
    return np.minimum(width, 2.0 * max_length)
