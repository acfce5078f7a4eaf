"""Intervals and tests against scipy, closed forms, brute force and simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.statistics import (
    POSITIVE,
    UNIT,
    Estimate,
    binomial_interval,
    binomial_p,
    cluster_bootstrap_mean,
    comparable,
    holm,
    mcnemar,
    mean_over_runs,
    paired_difference,
    wilson,
)

QUICK = Statistics(resamples=400)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (3, 7), (7, 7), (612, 1000), (1, 2985)])
def test_proportion_intervals_equal_scipys(k: int, n: int) -> None:
    for confidence in (0.9, 0.95, 0.999):
        test = stats.binomtest(k, n)
        assert wilson(k, n, confidence) == pytest.approx(tuple(test.proportion_ci(confidence, "wilson")), abs=1e-12)
        assert binomial_interval(k, n, confidence) == pytest.approx(tuple(test.proportion_ci(confidence)), abs=1e-9)


def test_singletons_of_one_seed_get_wilson_and_nothing_else_does() -> None:
    values = np.r_[np.ones(30), np.zeros(20)]
    alone = cluster_bootstrap_mean(values, np.arange(50), bounds=UNIT)
    assert (alone.method, alone.low, alone.high) == ("Wilson", *wilson(30, 50))
    few = cluster_bootstrap_mean(values, np.arange(50) // 2 + 100, QUICK, bounds=UNIT)
    assert few.method.startswith("t over 25 clusters")
    assert cluster_bootstrap_mean(values, np.arange(50), QUICK).method == "bootstrap over clusters"  # ones by chance
    for other in (np.r_[values, 0.5], [values] * 2):
        found = cluster_bootstrap_mean(other, np.arange(np.shape(other)[-1]), QUICK, bounds=UNIT)
        assert found.method == "bootstrap over clusters"


def test_a_quantity_that_happens_to_be_zero_is_no_share() -> None:
    """A strategy that never leaves its reference has a KL of zero: no share without successes."""
    still = cluster_bootstrap_mean(np.zeros(12), np.arange(12), bounds=POSITIVE)
    assert (still.value, still.low, still.high) == (0.0, 0.0, 0.0)
    near = cluster_bootstrap_mean(np.r_[np.zeros(11), 0.1], np.arange(12), bounds=POSITIVE)
    assert near.low == 0.0 < near.value < near.high


@pytest.mark.parametrize("n", [5, 12, 40, 1000])
def test_an_interval_of_a_share_holds_it(n: int) -> None:
    for successes in range(n + 1):
        low, high = wilson(successes, n)
        assert 0.0 <= low <= successes / n <= high <= 1.0


def _clustered(rng: np.random.Generator, clusters: int, seeds: int = 1, seed_sd: float = 0.0) -> tuple[np.ndarray, ...]:
    """Right or wrong by a threshold; clusters of 1 to 9 rows share a shift, seeds too. True accuracy in `_truth`."""
    members = np.repeat(np.arange(clusters), rng.integers(1, 10, clusters))
    shift = rng.normal(0, 1, clusters)[members] + rng.normal(0, seed_sd, (seeds, 1))
    return (0.4 + shift + rng.normal(0, 1, (seeds, members.size)) > 0).astype(float), members


def _truth(seed_sd: float = 0.0) -> float:
    return float(stats.norm.cdf(0.4 / math.sqrt(2 + seed_sd**2)))


@pytest.mark.parametrize("clusters", [12, 60])
def test_interval_covers_the_truth_where_the_naive_one_does_not(clusters: int) -> None:
    rng = np.random.default_rng(1)
    ours = naive = 0
    for _ in range(800):
        values, members = _clustered(rng, clusters)
        found = cluster_bootstrap_mean(values, members, QUICK)
        ours += found.low <= _truth() <= found.high
        low, high = wilson(int(values.sum()), members.size)
        naive += low <= _truth() <= high
    assert 0.925 <= ours / 800 <= 0.97
    assert naive / 800 < 0.85


def test_seeds_widen_the_interval_as_they_must() -> None:
    """Three seeds that differ: ours covers; resampling seeds and clusters, or pooling the seeds' rows, does not."""
    rng = np.random.default_rng(2)
    ours = resampled = pooled = 0
    for _ in range(500):
        values, members = _clustered(rng, 150, seeds=3, seed_sd=0.3)
        found = cluster_bootstrap_mean(values, members, QUICK)
        ours += found.low <= _truth(0.3) <= found.high
        sums = np.array([np.bincount(members, run) for run in values])
        drawn, runs = rng.integers(0, 150, (400, 150)), rng.integers(0, 3, (400, 3))
        means = sums[:, drawn].sum(axis=2) / np.bincount(members)[drawn].sum(axis=1)
        low, high = np.quantile(means[runs.T, np.arange(400)].mean(axis=0), (0.025, 0.975))
        resampled += low <= _truth(0.3) <= high
        one = cluster_bootstrap_mean(values.ravel(), np.tile(members, 3), QUICK)
        pooled += one.low <= _truth(0.3) <= one.high
    assert 0.91 <= ours / 500 <= 0.98
    assert resampled / 500 < 0.89
    assert pooled / 500 < 0.85


def test_few_clusters_give_scipys_t_interval_over_cluster_means() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(11, 40)) + rng.normal(size=(11, 1))
    found = cluster_bootstrap_mean(values.ravel(), np.repeat(np.arange(11), 40))
    expected = stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)
    assert (found.n, found.clusters) == (440, 11)


def test_bootstrap_equals_a_plain_loop_that_resamples_clusters() -> None:
    values, members = _clustered(np.random.default_rng(4), 80)
    rng = np.random.default_rng(5)
    rows = [np.flatnonzero(members == c) for c in range(80)]
    draws = [values[0, np.concatenate([rows[c] for c in rng.integers(0, 80, 80)])].mean() for _ in range(3000)]
    found = cluster_bootstrap_mean(values, members, Statistics(resamples=8000))
    low, high = np.quantile(draws, (0.025, 0.975))
    assert found.high - found.low == pytest.approx(high - low, rel=0.06)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.012)


def test_strata_weigh_the_mean_and_are_resampled_within() -> None:
    strata = np.repeat(["a", "b", "c"], [60, 40, 50])
    rng = np.random.default_rng(6)
    values = (rng.random(150) < np.repeat([0.9, 0.2, 0.5], [60, 40, 50])).astype(float)
    weights = {"a": 3.0, "b": 1.0, "c": 4.0, "absent": 9.0}
    found = cluster_bootstrap_mean(values, np.arange(150), strata=strata, weights=weights)
    means = np.array([values[:60].mean(), values[60:100].mean(), values[100:].mean()])
    share = np.array([3, 1, 4]) / 8
    assert found.value == pytest.approx(share @ means)
    error = math.sqrt(np.sum(share**2 * means * (1 - means) / np.array([59, 39, 49])))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    unstratified = cluster_bootstrap_mean(values, np.arange(150))
    assert unstratified.value != pytest.approx(found.value, abs=0.02)
    with pytest.raises(ValueError, match="no weight for c"):
        cluster_bootstrap_mean(values, np.arange(150), strata=strata, weights={"a": 1, "b": 1})


def test_strata_of_one_and_two_rows_still_cover() -> None:
    rng = np.random.default_rng(7)
    sizes = np.array([1, 1, 2, 3, 4, 12, 15, 20])
    strata = np.repeat(np.arange(8).astype(str), sizes)
    weights = dict(zip(np.arange(8).astype(str), sizes * 10.0, strict=True))
    truth = rng.uniform(0.4, 0.9, 8)
    target = truth @ sizes / sizes.sum()
    hits = 0
    for _ in range(600):
        values = (rng.random(sizes.sum()) < np.repeat(truth, sizes)).astype(float)
        found = cluster_bootstrap_mean(
            values, np.arange(sizes.sum()), QUICK, strata=strata, weights=weights, bounds=(0.0, 1.0)
        )
        hits += found.low <= target <= found.high
    assert 0.925 <= hits / 600 <= 0.985


def test_one_prompt_in_two_strata_counts_once() -> None:
    """Two aspects with the same rows tell no more than one: the interval must not shrink by 1 / sqrt(2)."""
    values = (np.random.default_rng(8).random(400) < 0.7).astype(float)
    prompts = np.arange(400)
    one = cluster_bootstrap_mean(values, prompts)
    both = {"values": np.tile(values, 2), "strata": np.repeat(["x", "y"], 400), "weights": {"x": 1.0, "y": 1.0}}
    shared = cluster_bootstrap_mean(clusters=np.tile(prompts, 2), **both)
    split = cluster_bootstrap_mean(clusters=np.arange(800), **both)
    assert shared.high - shared.low == pytest.approx(one.high - one.low, rel=0.05)
    assert split.high - split.low == pytest.approx((one.high - one.low) / math.sqrt(2), rel=0.05)


def test_paired_difference_equals_scipys_paired_t() -> None:
    rng = np.random.default_rng(9)
    a, noise = rng.normal(size=20), rng.normal(0, 0.3, 20)
    b = a - 0.1 + noise
    found = paired_difference(a / 10, b / 10, np.arange(20))
    expected = stats.ttest_rel(a / 10, b / 10).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)
    unpaired = stats.ttest_ind(a / 10, b / 10).confidence_interval(0.95)
    assert found.high - found.low < 0.5 * (unpaired.high - unpaired.low)


def test_seeds_alone_give_students_and_welchs_intervals() -> None:
    """Rows that don't differ leave the seeds' spread alone, for which scipy knows the interval."""
    a, b = np.array([0.61, 0.66, 0.60, 0.64]), np.array([0.55, 0.57, 0.50])
    spread = [np.tile(x[:, None], 40) for x in (a, b)]
    mean = cluster_bootstrap_mean(spread[0], np.arange(40))
    assert (mean.low, mean.high) == pytest.approx(tuple(stats.ttest_1samp(a, 0).confidence_interval()), abs=1e-12)
    gap = paired_difference(*spread, np.arange(40), seeds="independent")
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (gap.low, gap.high, gap.seeds) == pytest.approx((*welch, 3), abs=1e-12)
    paired = paired_difference(spread[0][:3], spread[1], np.arange(40))
    assert (paired.low, paired.high) == pytest.approx(tuple(stats.ttest_rel(a[:3], b).confidence_interval()), abs=1e-12)
    with pytest.raises(ValueError, match="4 seeds and b 3"):
        paired_difference(*spread, np.arange(40))


def test_mean_over_runs_is_students() -> None:
    scores = [0.48, 0.53, 0.51, 0.47, 0.52]
    found = mean_over_runs(scores, 900, 700, what="shuffles")
    assert (found.low, found.high) == pytest.approx(tuple(stats.ttest_1samp(scores, 0).confidence_interval()))
    assert found.method == "t over 5 shuffles"
    assert math.isnan(mean_over_runs([0.5], 9, 9).low)


def test_mcnemar_against_binomtest_and_a_table() -> None:
    a = np.r_[np.ones(10), np.zeros(2), np.ones(50), np.zeros(9)].astype(bool)
    b = np.r_[np.zeros(10), np.ones(2), np.ones(50), np.zeros(9)].astype(bool)
    only_a, only_b, p = mcnemar(a, b)
    assert (only_a, only_b) == (10, 2)
    assert p == pytest.approx(stats.binomtest(10, 12, 0.5).pvalue)
    assert p == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert mcnemar(a, a) == (0, 0, 1.0)


def test_holm_on_a_known_example_and_family_wise() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    rng = np.random.default_rng(10)
    plain = adjusted = 0
    for _ in range(200):
        p_values = [binomial_p(int(k), 500, 0.7) for k in rng.binomial(500, 0.7, 20)]
        plain += min(p_values) < 0.05
        adjusted += min(holm(p_values)) < 0.05
    assert adjusted / 200 < 0.09 < 0.3 < plain / 200


def test_verdicts() -> None:
    def gap(low: float, high: float, seeds: int = 3) -> Estimate:
        return Estimate((low + high) / 2, low, high, 500, 400, "", seeds)

    assert comparable(gap(-0.015, 0.01), 0.02) == "holds"
    assert comparable(gap(-0.05, -0.021), 0.02) == "fails"
    assert comparable(gap(-0.05, 0.01), 0.02) == "undecided"
    assert comparable(gap(-0.015, 0.01, seeds=2), 0.02) == "undecided"
    assert comparable(gap(-0.015, 0.01, seeds=1), 0.02, trained=False) == "holds"
    assert comparable(gap(math.nan, math.nan), 0.02, trained=False) == "undecided"


def test_deterministic_and_free_of_row_order() -> None:
    values, members = _clustered(np.random.default_rng(11), 90)
    names = np.array([f"p{c}" for c in members])
    first = cluster_bootstrap_mean(values, names)
    assert cluster_bootstrap_mean(values, names) == first
    order = np.random.default_rng(12).permutation(names.size)
    again = cluster_bootstrap_mean(values[:, order], names[order])
    assert (again.low, again.high) == pytest.approx((first.low, first.high), abs=1e-12)
    other = cluster_bootstrap_mean(values, names, Statistics(seed=1))
    assert (other.low, other.high) != (first.low, first.high)
    assert (other.low, other.high) == pytest.approx((first.low, first.high), abs=0.01)


def test_no_width_is_not_certainty() -> None:
    right = cluster_bootstrap_mean(np.ones(80), np.arange(80) // 2, bounds=(0.0, 1.0))
    assert (right.low, right.high) == pytest.approx(wilson(40, 40))
    same = paired_difference(np.ones(80), np.ones(80), np.arange(80) // 2)
    assert same.high == -same.low == pytest.approx(binomial_interval(0, 40)[1])
    lone = cluster_bootstrap_mean([1.0, 0.0], ["a", "a"])
    assert math.isnan(lone.low)
    assert lone.method == "one cluster: no interval"


@pytest.mark.parametrize("values", [[], [[]], [1.0, math.nan], [[[1.0]]]])
def test_unusable_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values"):
        cluster_bootstrap_mean(values, [0] * len(values))
    with pytest.raises(ValueError, match="cluster labels"):
        cluster_bootstrap_mean([1.0, 0.0], [1])


def test_strata_of_one_cluster_each_still_have_an_interval() -> None:
    """With one row a stratum the only spread to be seen is that between strata: that of a plain mean."""
    random = np.random.default_rng(0)
    rows = random.integers(0, 2, 200).astype(float)
    names = [f"s{i}" for i in range(200)]
    found = cluster_bootstrap_mean(rows, names, strata=names, weights=dict.fromkeys(names, 1.0), bounds=UNIT)
    half = 1.96 * rows.std() / math.sqrt(rows.size)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    few = cluster_bootstrap_mean([1, 0, 1, 0, 1, 0], list("abcdef"), strata=list("abcdef"), bounds=UNIT)
    assert (few.low, few.high) == (0.0, 1.0)  # one degree of freedom: anything is possible
