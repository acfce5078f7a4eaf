"""Implicit rewards and the signal by position against brute force on hand-made arrays."""

from __future__ import annotations

import numpy as np
import pytest

from shallow_signals.config.statistics import Statistics
from shallow_signals.models.logprobs import ResponseLogprobs
from shallow_signals.signal import implicit, position
from shallow_signals.signal.implicit import LogRatios, PairRatios

SETTINGS = Statistics(resamples=200)


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


def test_signal_by_position_counts_survivors() -> None:
    chosen = [np.array([3.0, 1.0]), np.array([1.0])]
    rejected = [np.array([1.0, 4.0, 9.0]), np.array([0.0, 2.0])]
    found = position.signal_by_position(chosen, rejected, ["a", "b"], [1, 2, 3], SETTINGS)
    assert found[1].value == pytest.approx(1.5)
    assert (found[1].n, found[2].n) == (2, 1)
    assert found[2].value == pytest.approx(-3)
    assert 3 not in found


def test_share_reached_is_a_ratio_of_means() -> None:
    random = np.random.default_rng(0)
    totals = random.normal(2, 1, 400)
    clusters = [str(i // 2) for i in range(400)]
    found = position.share_reached(0.3 * totals, totals, clusters, SETTINGS)
    assert found.value == pytest.approx(0.3)
    assert found.low == pytest.approx(0.3) == found.high
    noisy = position.share_reached(0.3 * totals + random.normal(0, 1, 400), totals, clusters, SETTINGS)
    assert noisy.low < 0.3 < noisy.high
    assert np.isnan(position.share_reached(totals, -totals, clusters, SETTINGS).low)


def test_concentration_tells_sparse_from_early() -> None:
    sparse = [0.0] * 40
    for i in (9, 19, 29, 39):
        sparse[i] = 1.0
    early = [1.0] * 4 + [0.0] * 36
    for values, held in ((sparse, 0.0), (early, 1.0)):
        assert position.tokens_holding(response(values), 0.8) == pytest.approx(4 / 40)
        assert position.held_by_head(response(values), 4 / 40) == pytest.approx(held)
    best, head = position.concentration(
        [PairRatios(str(i), response(early), response(sparse)) for i in range(5)], list("abcde"), SETTINGS
    )
    assert best.value == pytest.approx(0.1)
    assert head.value == pytest.approx(0.5)
