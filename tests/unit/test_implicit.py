"""Implicit rewards against brute force on hand-made arrays."""

from __future__ import annotations

import numpy as np
import pytest

from shallow_signals.models.records import ResponseLogprobs
from shallow_signals.signal import implicit
from shallow_signals.signal.implicit import LogRatios, PairRatios


def response(values: list[float], closing: list[float] | None = None) -> LogRatios:
    ends = closing if closing is not None else [0.0] * len(values)
    return LogRatios(
        np.array(values, np.float32), np.arange(1, len(values) + 1, dtype=np.int32), np.array(ends, np.float32)
    )


@pytest.fixture
def pairs() -> list[PairRatios]:
    random = np.random.default_rng(3)

    def one(n: int) -> LogRatios:
        return response(list(random.normal(size=n)), list(random.normal(size=n)))

    return [PairRatios(f"p{i}", one(int(a)), one(int(b))) for i, (a, b) in enumerate(random.integers(1, 40, (50, 2)))]


@pytest.mark.parametrize("percent", [1, 25, 33, 50, 100])
def test_margins_are_sums_over_the_kept_tokens(pairs: list[PairRatios], percent: int) -> None:
    heads = implicit.margins_at_ratio(pairs, percent)
    tails = implicit.margins_at_ratio(pairs, percent, "tail")
    closed = implicit.margins_at_ratio(pairs, percent, closing=True)
    for i, pair in enumerate(pairs):
        sums = []
        for r in (pair.chosen, pair.rejected):
            t = max(1, int(len(r.tokens) * percent / 100 + 1e-9))
            sums.append((sum(r.tokens[:t]), sum(r.tokens[-t:]), sum(r.tokens[:t]) + r.closing[t - 1]))
        for found, k in ((heads, 0), (tails, 1), (closed, 2)):
            assert found[i] == pytest.approx(sums[0][k] - sums[1][k], abs=1e-5)


def test_whole_windows_and_lengths_are_the_whole(pairs: list[PairRatios]) -> None:
    whole = implicit.margins_at_ratio(pairs, 100)
    np.testing.assert_allclose(implicit.margins_at_ratio(pairs, 100, "window"), whole, atol=1e-6)
    np.testing.assert_allclose(implicit.margins_at_length(pairs, 10**6), whole, atol=1e-6)
    np.testing.assert_allclose(implicit.margins_topshare(pairs, pairs, 100), whole, atol=1e-5)
    np.testing.assert_allclose(implicit.margins_random(pairs, 100, 1), whole, atol=1e-5)
    assert not np.allclose(implicit.margins_at_ratio(pairs, 50, "window"), implicit.margins_at_ratio(pairs, 50))


def test_min_length_keeps_as_many_tokens_of_both() -> None:
    pair = PairRatios("p", response([1, 1, 1, 1]), response([5, 7]))
    assert implicit.margins_min_length([pair])[0] == 2 - 12
    assert implicit.margins_at_length([pair], 1)[0] == 1 - 5


def test_topshare_follows_the_selector_not_the_values() -> None:
    pair = PairRatios("p", response([1, 2, 3, 4]), response([0, 0]))
    selector = PairRatios("p", response([0, -9, 0, 1]), response([1, 1]))
    assert implicit.margins_topshare([pair], [selector], 50)[0] == 2 + 4


def test_ties_count_one_half() -> None:
    np.testing.assert_array_equal(implicit.correct(np.array([2.0, 0.0, -1.0])), [1, 0.5, 0])


def test_a_closing_that_was_not_read_is_refused(pairs: list[PairRatios]) -> None:
    with pytest.raises(ValueError, match="not read after 99"):
        implicit.closing_ratio(pairs[0].chosen, 99)
    with pytest.raises(ValueError, match="different tokens"):
        a = ResponseLogprobs(np.zeros(3, np.float32), np.array([3], np.int32), np.zeros(1, np.float32))
        b = ResponseLogprobs(np.zeros(4, np.float32), np.array([4], np.int32), np.zeros(1, np.float32))
        implicit.log_ratios(a, b)
