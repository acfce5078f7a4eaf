"""The strategies' distributions against the formulas of section 3.3, evaluated in float64 by numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shallow_signals.decoding import (
    Strategy,
    kl_threshold,
    length_control,
    mixing,
    parse,
    policy,
    reference,
    sampling_logps,
)
from shallow_signals.decoding.kl import log_probs
from shallow_signals.decoding.mixture import tilt
from shallow_signals.files import InputError

ROWS, VOCABULARY = 6, 300
EVERY_KIND = [
    reference(),
    policy(),
    mixing(0.5),
    mixing(1.75),
    mixing(1 / 3),
    length_control(0),
    length_control(8),
    length_control(math.inf),
    kl_threshold(0.1),
    kl_threshold(1e-7),
    kl_threshold(math.inf),
    kl_threshold(-0.25, fallback="mixture"),
    kl_threshold(0.5, fallback="mixture", monte_carlo=1000),
]


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    base = 2 * torch.randn(ROWS, VOCABULARY, generator=random)
    # From nearly equal to far apart, so that a threshold falls between the rows.
    shift = torch.linspace(0.05, 2.0, ROWS)[:, None] * torch.randn(ROWS, VOCABULARY, generator=random)
    return log_probs(base + shift), log_probs(base)


def by_the_formula(p: torch.Tensor, q: torch.Tensor, a: float) -> NDArray[np.float64]:
    """softmax(a log(p / q) + log q), section 3.3.1."""
    p64, q64 = np.exp(p.double().numpy()), np.exp(q.double().numpy())
    weights = (p64 / q64) ** a * q64
    return np.asarray(weights / weights.sum(-1, keepdims=True))


@pytest.mark.parametrize("a", [-0.5, 0.0, 0.3, 1.0, 1.7])
def test_mixing_is_the_papers_formula_and_no_average_of_probabilities(
    pair: tuple[torch.Tensor, torch.Tensor], a: float
) -> None:
    found = sampling_logps([mixing(a)] * ROWS, *pair, 1).double().exp().numpy()
    np.testing.assert_allclose(found, by_the_formula(*pair, a), rtol=2e-5)
    if a not in (0.0, 1.0):
        average = a * pair[0].double().exp().numpy() + (1 - a) * pair[1].double().exp().numpy()
        assert np.abs(found - average).max() > 0.01


def test_the_ends_are_the_models_bit_for_bit(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    own, other = pair
    tiny = -1e-12
    for same_as_policy in (policy(), mixing(1), length_control(math.inf), kl_threshold(tiny)):
        assert torch.equal(sampling_logps([same_as_policy] * ROWS, own, other, 5), own), same_as_policy.name
    for same_as_reference in (reference(), mixing(0), length_control(0), kl_threshold(math.inf)):
        assert torch.equal(sampling_logps([same_as_reference] * ROWS, own, other, 5), other), same_as_reference.name
    assert not torch.equal(own, other)


def test_length_control_hands_over_after_token_t(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    steps = np.array([1, 2, 3, 4, 5, 6])
    found = sampling_logps([length_control(4)] * ROWS, *pair, steps)
    assert torch.equal(found[:4], pair[0][:4])
    assert torch.equal(found[4:], pair[1][4:])


def test_threshold_control_follows_the_policy_above_b_only(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    p, q = (x.double().numpy() for x in pair)
    kl = (np.exp(p) * (p - q)).sum(-1)
    b = float(np.sort(kl)[2:4].mean())
    above = torch.from_numpy(kl > b)
    assert 0 < above.sum() < ROWS
    found = sampling_logps([kl_threshold(b)] * ROWS, *pair, 1)
    assert torch.equal(found, torch.where(above[:, None], *pair))
    half = sampling_logps([kl_threshold(b, fallback="mixture")] * ROWS, *pair, 1)
    assert torch.equal(half[above], pair[0][above])
    np.testing.assert_allclose(half[~above].exp().numpy(), by_the_formula(*pair, 0.5)[~above.numpy()], rtol=2e-5)


def test_rows_of_different_strategies_stand_side_by_side(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = [reference(), mixing(0.5), length_control(3), length_control(4), kl_threshold(0.1), policy()]
    together = sampling_logps(rows, *pair, 4)
    for r, strategy in enumerate(rows):
        alone = sampling_logps([strategy], pair[0][r : r + 1], pair[1][r : r + 1], 4)
        torch.testing.assert_close(together[r : r + 1], alone, rtol=0, atol=1e-6)


def test_a_token_that_neither_model_allows_stays_impossible() -> None:
    logits = torch.zeros(1, 5)
    logits[0, 2] = -math.inf
    mixed = tilt(log_probs(logits), log_probs(logits + torch.arange(5)), torch.tensor([1.7])).exp()
    assert mixed[0, 2] == 0
    assert mixed.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("strategy", EVERY_KIND, ids=lambda strategy: strategy.name)
def test_a_name_says_everything(strategy: Strategy) -> None:
    assert parse(strategy.name) == strategy


def test_names_read_as_they_are_written() -> None:
    names = [s.name for s in (mixing(0.5), length_control(8), kl_threshold(0.1))]
    assert names == ["mix0.50", "length8", "threshold0.1"]


@pytest.mark.parametrize(
    "name",
    ["", "dpo", "mix", "mixinf", "mix0.5.1", "length-1", "length2.5", "threshold", "policy-mixture", "mix0.5-mc10"],
)
def test_an_unknown_name_lists_the_forms(name: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("a", [math.inf, math.nan])
def test_a_coefficient_must_be_finite(a: float) -> None:
    with pytest.raises(InputError, match="finite"):
        mixing(a)


@pytest.mark.parametrize("t", [-1, 2.5, math.nan])
def test_a_length_must_be_a_count(t: float) -> None:
    with pytest.raises(InputError, match="number of tokens"):
        length_control(t)
