"""Which part of a response a truncation keeps: pure functions on token offsets and lengths.

Token k of a response stands for the characters `starts[k]:ends[k]` of its text. The offsets tile the text (the first
starts at 0, the last ends at its length, none leaves a gap) and overlap exactly where a character is made of several
tokens. A cut between two tokens is possible where they don't overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shallow_signals.config.truncation import Truncation
from shallow_signals.data.pairs import uniform_hash

Offsets = Sequence[int] | NDArray[np.int32]


def kept_range(
    truncation: Truncation,
    starts: Offsets,
    ends: Offsets,
    text_length: int,
    *,
    other_tokens: int | None,
    key: str,
) -> tuple[int, int]:
    """The tokens [first, last) that `truncation` keeps of a response; the kept text is starts[first]:ends[last - 1].

    `other_tokens` is the length of the pair's other response (read by `min_length`), `key` draws the place of a window.
    A cut inside a character is moved so that the character is dropped, or kept whole where nothing else would be left.
    Raises `ValueError` for cuts by characters (see `kept_characters`) and for scoring-only truncations.
    """
    first, last = nominal_range(truncation, len(starts), other_tokens=other_tokens, key=key)

    def possible(cut: int) -> bool:
        if cut in (0, len(starts)):
            return True
        return ends[cut - 1] <= starts[cut] < text_length and ends[cut - 1] > 0

    whole_first, whole_last = first, last
    while not possible(whole_first):
        whole_first += 1
    while not possible(whole_last):
        whole_last -= 1
    if whole_first < whole_last:
        return whole_first, whole_last
    while not possible(first):
        first -= 1
    while not possible(last):
        last += 1
    return first, last


def nominal_range(truncation: Truncation, tokens: int, *, other_tokens: int | None, key: str) -> tuple[int, int]:
    """The tokens [first, last) that `truncation` asks for, whatever characters they are parts of; at least one."""
    if truncation.keeps_text:
        return 0, tokens
    if truncation.kind == "min_length":
        if other_tokens is None:
            raise ValueError("min_length needs the length of the other response")
        return 0, min(tokens, other_tokens)
    if truncation.kind != "cut":
        raise ValueError(f"'{truncation.name}' is for scoring only")
    if truncation.unit != "token":
        raise ValueError(f"'{truncation.name}' cuts by characters, not by tokens")
    return _place(truncation, tokens, key)


def kept_characters(truncation: Truncation, text_length: int, *, key: str) -> tuple[int, int]:
    """The characters [begin, end) that a cut by characters keeps; at least one. Raises `ValueError` for other cuts."""
    if truncation.kind != "cut" or truncation.unit != "char":
        raise ValueError(f"'{truncation.name}' does not cut by characters")
    return _place(truncation, text_length, key)


def _place(truncation: Truncation, total: int, key: str) -> tuple[int, int]:
    """A cut's range over `total` tokens or characters: floor(ratio x total) of them or a fixed number, at least one."""
    if truncation.ratio is not None:
        kept = max(1, truncation.ratio.numerator * total // truncation.ratio.denominator)
    else:
        assert truncation.length is not None
        kept = min(truncation.length, total)
    spare = total - kept
    if truncation.side == "head":
        first = 0
    elif truncation.side == "tail":
        first = spare
    else:
        first = int(uniform_hash("window", key) * (spare + 1))
    return first, first + kept
