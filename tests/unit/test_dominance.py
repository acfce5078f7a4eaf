"""Points and dominance on constructed responses whose places are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

from shallow_signals.config.statistics import Statistics
from shallow_signals.decoding import kl_threshold, length_control, mixing, policy, reference
from shallow_signals.decoding.records import Generation, to_table
from shallow_signals.decoding.strategies import Strategy
from shallow_signals.evaluation.dominance import AT_THIS_KL, Against, against_mixing, retrained_against_mixing
from shallow_signals.evaluation.statistics import Estimate
from shallow_signals.evaluation.tradeoff import Run, beside, points, read_run
from shallow_signals.files import InputError, write_parquet
from shallow_signals.paper import readings
from shallow_signals.paper.dominance_table import COLUMNS, write_dominance

SETTINGS = Statistics(resamples=400)
BASELINE = [(reference(), 0.0), (mixing(0.5), 1.0), (policy(), 4.0), (mixing(2.0), 9.0)]


def frontier(kl: float) -> float:
    """A concave line through the baseline's points: what mixing earns at a KL."""
    return float(np.interp(kl, [0, 1, 4, 9], [0, 1, 2, 2.5]))


def constructed(extra: list[tuple[Strategy, float, float]], prompts: int = 200, seed: int = 0) -> Run:
    """The baseline on its line and strategies at (kl, line + lift); prompts differ far more than strategies do."""
    random = np.random.default_rng(seed)
    rows = [(s, kl, frontier(kl)) for s, kl in BASELINE] + [(s, kl, frontier(kl) + lift) for s, kl, lift in extra]
    hard = random.normal(0, 3, prompts)
    kl = np.array([kl * random.uniform(0.8, 1.2, prompts) for _, kl, _ in rows])
    reward = np.array([level + hard + random.normal(0, 0.3, prompts) for _, _, level in rows])
    ones = np.ones_like(kl)
    return Run([f"p{i}" for i in range(prompts)], [s for s, _, _ in rows], kl, kl, reward, 50 * ones, ones)


def by_name(found: list[Against]) -> dict[str, Against]:
    return {each.name: each for each in found}


def test_better_worse_and_equal_strategies_are_told_apart() -> None:
    extra = [
        (length_control(8), 2.0, 0.3),
        (length_control(20), 3.0, -0.3),
        (kl_threshold(0.1), 2.5, 0.0),
        (kl_threshold(0.0), 20.0, 1.0),
    ]
    found = by_name(against_mixing(constructed(extra), SETTINGS))
    assert {name: each.place for name, each in found.items()} == {
        "length8": "above",
        "length20": "below",
        "threshold0.1": "undecided",
        "threshold0": "outside",
    }
    for name, truth in (("length8", 0.3), ("length20", -0.3), ("threshold0.1", 0.0)):
        gap = found[name].difference
        assert gap is not None and gap.low < truth < gap.high
        assert found[name].value - found[name].baseline == pytest.approx(gap.value)
        assert gap.high - gap.low < 0.3  # prompts differ by 3: unpaired, the interval would be 1.2 wide
    assert found["threshold0"].difference is None and math.isnan(found["threshold0"].baseline)


def test_a_strategy_shuffled_over_the_baseline_is_seldom_flagged() -> None:
    """The control: rewards on the line, whatever the noise. About one in twenty is flagged, and as often each way."""
    flags = [
        against_mixing(constructed([(length_control(8), 2.0, 0.0)], prompts=60, seed=seed), SETTINGS)[0].place
        for seed in range(80)
    ]
    assert sum(flag != "undecided" for flag in flags) <= 11  # 99.9% of a binomial of 80 at 5%
    lifted = constructed([(length_control(8), 2.0, 0.3)], prompts=60, seed=1)
    assert against_mixing(lifted, SETTINGS)[0].place == "above"


def test_interval_follows_the_kl_of_the_point_and_of_the_line() -> None:
    """Brute force: whole prompts resampled, everything made anew in a plain loop."""
    run = constructed([(length_control(8), 2.0, 0.2)], prompts=80)
    gap = against_mixing(run, Statistics(resamples=4000))[0].difference
    random, gaps = np.random.default_rng(5), []
    for _ in range(4000):
        take = random.integers(0, 80, 80)
        kl, reward = run.kl[:, take].mean(1), run.reward[:, take].mean(1)
        gaps.append(reward[4] - np.interp(kl[4], kl[:4], reward[:4]))
    assert gap is not None
    np.testing.assert_allclose((gap.low, gap.high), np.quantile(gaps, (0.025, 0.975)), atol=0.02)


def test_few_prompts_get_students_quantile() -> None:
    """With the KLs held still the gap is a plain mean of differences, whose t-interval is known."""
    run = constructed([(length_control(8), 2.5, 0.2)], prompts=9)
    still = np.repeat(np.array([[0.0], [1.0], [4.0], [9.0], [2.5]]), 9, axis=1)
    gap = against_mixing(Run(run.prompts, run.strategies, still, still, run.reward, still, still), SETTINGS)[0]
    rows = run.reward[4] - (run.reward[1] + run.reward[2]) / 2
    low, high = stats.t.interval(0.95, 8, loc=rows.mean(), scale=stats.sem(rows))
    assert gap.difference is not None
    assert gap.difference.method == "t over the jackknife of 9 prompts"
    np.testing.assert_allclose((gap.difference.low, gap.difference.high), (low, high), rtol=1e-9)


def test_the_baseline_may_cross_itself() -> None:
    """A larger a with a smaller KL, as short responses give: the line is through the points by KL."""
    run = constructed([(length_control(8), 6.5, 0.0)])
    run.kl[[2, 3]] = run.kl[[3, 2]]
    run.reward[[2, 3]] = run.reward[[3, 2]]
    assert against_mixing(run, SETTINGS)[0].place == "undecided"
    alone = Run(["a"], [mixing(0.5), length_control(3)], *(np.ones((2, 1)) for _ in range(5)))
    with pytest.raises(InputError, match="fewer than two points"):
        against_mixing(alone, SETTINGS)


def test_a_retrained_policy_is_set_against_its_mixture() -> None:
    run = constructed([])

    def again(lift: float) -> Run:
        made = constructed([(policy(), 1.2, lift)])
        return Run(made.prompts, [policy()], *(of[-1:] for of in (made.kl, made.kl, made.reward, made.kl, made.kl)))

    found = list(retrained_against_mixing("double", 0.5, run, again(0.4), SETTINGS))
    assert [(each.against, each.quantity) for each in found] == [
        (AT_THIS_KL, "reward"),
        ("mix0.50", "KL"),
        ("mix0.50", "reward"),
    ]
    kl = found[1].difference
    assert kl is not None and kl.low < 0.2 < kl.high
    assert [each.place for each in found] == ["above", "above", "above"]
    assert next(iter(retrained_against_mixing("double", 0.5, run, again(0.0), SETTINGS))).place == "undecided"
    assert len(list(retrained_against_mixing("other", 0.3, run, again(0.0), SETTINGS))) == 1  # no such mixture was made
    assert [each.against for each in retrained_against_mixing("same", 1.0, run, again(0.0), SETTINGS)][1] == "policy"
    other = Run(["x"], [policy()], *(np.ones((1, 1)) for _ in range(5)))
    with pytest.raises(InputError, match="different prompts"):
        beside(run, other)


def made(prompt: str, sample: int, strategy: str, kl: list[float], ratio: list[float]) -> Generation:
    tokens = np.arange(len(kl), dtype=np.int32)
    columns = [np.array(values, np.float32) for values in (kl, kl, ratio, ratio, ratio)]
    return Generation(prompt, sample, strategy, tokens, sample == 0, *columns, tokens)


def files(folder: Path, strategies: tuple[str, ...] = ("reference", "mix0.50")) -> tuple[Path, Path]:
    responses = [
        made(prompt, sample, name, [0.5] * (1 + sample), [float(place)] * (1 + sample))
        for place, prompt in enumerate(("a", "b"))
        for sample in (0, 1)
        for name in strategies
    ]
    table = to_table(responses)
    write_parquet(folder / "responses.parquet", table)
    scored = table.select(["prompt_id", "sample", "strategy"])
    rewards = scored.append_column("reward", pa.array(np.arange(table.num_rows, dtype=np.float64)))
    write_parquet(folder / "rewards.parquet", rewards)
    return folder / "responses.parquet", folder / "rewards.parquet"


def test_samples_of_a_prompt_are_averaged(tmp_path: Path) -> None:
    run = read_run(*files(tmp_path))
    assert run.prompts == ["a", "b"]
    assert [strategy.name for strategy in run.strategies] == ["reference", "mix0.50"]
    np.testing.assert_allclose(run.kl, [[0.75, 0.75], [0.75, 0.75]])
    np.testing.assert_allclose(run.kl_sampled, [[0, 1.5], [0, 1.5]])
    np.testing.assert_allclose(run.reward, [[1, 5], [2, 6]])
    np.testing.assert_allclose(run.tokens, 1.5)
    np.testing.assert_allclose(run.ended, 0.5)
    point = points(run, SETTINGS)[1]
    assert (point.reward.value, point.kl.value, point.kl_sampled.value, point.ended) == (4.0, 0.75, 0.75, 0.5)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    responses, rewards = files(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(InputError, match=r"rewards\.parquet: scores other responses"):
        read_run(responses, files(other, ("reference", "policy"))[1])
    table = to_table([made("a", 0, "policy", [1.0], [1.0]), made("b", 0, "reference", [1.0], [1.0])])
    write_parquet(responses, table)
    write_parquet(
        rewards, table.select(["prompt_id", "sample", "strategy"]).append_column("reward", pa.array([0.0, 0.0]))
    )
    with pytest.raises(InputError, match="not every strategy"):
        read_run(responses, rewards)


def test_the_table_holds_every_comparison(tmp_path: Path) -> None:
    found = against_mixing(constructed([(length_control(8), 2.0, 0.3), (kl_threshold(0.0), 20.0, 1.0)]), SETTINGS)
    found.append(
        Against("retrained", "b_x", "policy", "KL", 1.0, 1.0, 2.0, Estimate(-1.0, -2.0, -0.5, 9, 9, "a"), "below")
    )
    write_dominance({"A & B": found}, SETTINGS, tmp_path / "dominance")
    frame = pd.read_csv(tmp_path / "dominance.csv")
    assert frame.columns.tolist() == COLUMNS
    assert frame["verdict"].tolist() == ["above", "outside", "below"]
    assert frame["prompts"].tolist()[0] == 200
    said = " ".join(readings.dominance(frame))
    assert "of 2 points of length control and KL threshold, 1 above, 0 below, 0 undecided, 1 outside" in said
    assert "`b_x`, trained again, minus policy: KL -1.000 [-2.000, -0.500]." in said
    text = (tmp_path / "dominance.md").read_text()
    assert "| A & B | length8 |" in text and "1 above, 1 outside" in text
    latex = (tmp_path / "dominance.tex").read_text()
    assert r"A \& B & length8" in latex and r"b\_x" in latex and latex.count(r"\\") == 4
