"""Cuts against brute force over bytes: tokens are random pieces of a text's UTF-8, so some end inside a character."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shallow_signals.config.truncation import Truncation, parse
from shallow_signals.data.truncate import kept_characters, kept_range, nominal_range

ALPHABET = "ab cé東🙂\n"
NAMES = ["head", "tail", "window"]
steady = settings(deadline=None)  # a busy machine is no failure


class Pieces:
    """A text and the pieces of its UTF-8 that stand for tokens, with the offsets that a tokenizer reports."""

    def __init__(self, text: str, cuts: set[int]) -> None:
        data = text.encode()
        bounds = [0, *sorted(cuts), len(data)]
        self.text = text
        self.tokens = [data[a:b] for a, b in itertools.pairwise(bounds)]
        character = np.repeat(np.arange(len(text)), [len(letter.encode()) for letter in text])
        self.starts = [int(character[a]) for a in bounds[:-1]]
        self.ends = [int(character[b - 1]) + 1 for b in bounds[1:]]
        self.whole = {k for k, b in enumerate(bounds) if b == len(data) or character[b] != character[b - 1] or b == 0}

    def range(self, name: str | Truncation, key: str = "key", other: int | None = None) -> tuple[int, int]:
        cut = parse(name) if isinstance(name, str) else name
        return kept_range(cut, self.starts, self.ends, len(self.text), other_tokens=other, key=key)

    def kept(self, name: str, key: str = "key") -> str:
        first, last = self.range(name, key)
        return self.text[self.starts[first] : self.ends[last - 1]]


@st.composite
def pieces(draw: st.DrawFn) -> Pieces:
    text = draw(st.text(ALPHABET, min_size=1, max_size=30))
    size = len(text.encode())
    return Pieces(text, draw(st.sets(st.integers(1, size - 1), max_size=size - 1)) if size > 1 else set())


percent = st.integers(1, 100)


@steady
@given(pieces(), percent, st.sampled_from(NAMES), st.text(max_size=3))
def test_kept_tokens_are_exactly_the_kept_text(made: Pieces, n: int, side: str, key: str) -> None:
    first, last = made.range(f"{side}{n}", key)
    assert 0 <= first < last <= len(made.tokens)
    kept = b"".join(made.tokens[first:last]).decode()  # fails where a character is broken
    assert kept == made.kept(f"{side}{n}", key)
    assert kept
    assert kept in made.text
    if side == "head":
        assert made.text.startswith(kept)
    if side == "tail":
        assert made.text.endswith(kept)


@steady
@given(pieces(), percent)
def test_head_and_tail_are_the_nearest_cuts_at_whole_characters(made: Pieces, n: int) -> None:
    total = len(made.tokens)
    asked = max(1, (n * total) // 100)
    fewer = [k for k in made.whole if 0 < k <= asked]
    assert made.range(f"head{n}") == (0, max(fewer) if fewer else min(k for k in made.whole if k > asked))
    fewer = [total - k for k in made.whole if 0 < total - k <= asked]
    kept = max(fewer) if fewer else min(total - k for k in made.whole if total - k > asked)
    assert made.range(f"tail{n}") == (total - kept, total)


def test_a_cut_that_does_not_look_at_characters_breaks_them() -> None:
    made = Pieces("🙂🙂", {1, 2, 3, 4, 5, 6, 7})
    first, last = nominal_range(parse("head25"), 8, other_tokens=None, key="key")
    with pytest.raises(UnicodeDecodeError):
        b"".join(made.tokens[first:last]).decode()
    assert made.range("head25") == (0, 4)  # grown: nothing else would be left
    assert made.range("head80") == (0, 4)  # shrunk
    assert made.range("tail80") == (4, 8)


@steady
@given(pieces())
def test_everything_is_kept_by_100_percent(made: Pieces) -> None:
    for name in ("full", "head100", "tail100", "window100", "pairs50", "shuffled1", "head999tok"):
        assert made.range(name) == (0, len(made.tokens))


@steady
@given(pieces())
def test_lengths_grow_with_the_ratio(made: Pieces) -> None:
    for side in ("head", "tail"):
        lengths = [last - first for first, last in (made.range(f"{side}{n}") for n in range(1, 101))]
        assert lengths == sorted(lengths)
        assert lengths[0] >= 1


@steady
@given(st.integers(1, 5000), percent, st.sampled_from(NAMES), st.text(max_size=3))
def test_asked_length_is_the_exact_floor(total: int, n: int, side: str, key: str) -> None:
    first, last = nominal_range(parse(f"{side}{n}"), total, other_tokens=None, key=key)
    assert last - first == max(1, int(Fraction(n, 100) * total))
    assert 0 <= first < last <= total
    first, last = nominal_range(parse(f"{side}{n}tok"), total, other_tokens=None, key=key)
    assert last - first == min(n, total)


def test_floor_is_not_a_rounded_product() -> None:
    assert int(0.29 * 100) == 28  # what floating point makes of 29%
    assert nominal_range(parse("head29"), 100, other_tokens=None, key="") == (0, 29)


def test_windows_start_anywhere_with_equal_chance() -> None:
    def starts(name: str) -> list[int]:
        return [nominal_range(parse(name), 20, other_tokens=None, key=f"row {n}")[0] for n in range(4400)]

    counts = np.bincount(starts("window50"), minlength=11)
    assert len(counts) == 11  # offsets 0 to 10, both ends included
    assert stats.chisquare(counts).pvalue > 0.001
    assert stats.chisquare(np.bincount(starts("head50"), minlength=11)).pvalue < 0.001


@steady
@given(st.integers(1, 50), st.integers(1, 50))
def test_min_length_cuts_to_the_shorter(chosen: int, rejected: int) -> None:
    cut = parse("min_length")
    ranges = [
        nominal_range(cut, own, other_tokens=other, key="") for own, other in ((chosen, rejected), (rejected, chosen))
    ]
    assert ranges == [(0, min(chosen, rejected))] * 2


@steady
@given(st.integers(1, 200), percent, st.sampled_from(NAMES), st.text(max_size=3))
def test_characters(length: int, n: int, side: str, key: str) -> None:
    begin, end = kept_characters(parse(f"{side}{n}-char"), length, key=key)
    assert end - begin == max(1, n * length // 100)
    assert 0 <= begin < end <= length
    assert side != "head" or begin == 0
    assert side != "tail" or end == length
    begin, end = kept_characters(parse(f"{side}{n}chars"), length, key=key)
    assert end - begin == min(n, length)


def test_what_is_refused() -> None:
    made = Pieces("some text", {4})
    with pytest.raises(ValueError, match="scoring only"):
        made.range("topshare50")
    with pytest.raises(ValueError, match="by characters"):
        made.range("head50-char")
    with pytest.raises(ValueError, match="does not cut by characters"):
        kept_characters(parse("head50"), 9, key="")
    with pytest.raises(ValueError, match="other response"):
        made.range("min_length")
