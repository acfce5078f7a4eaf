"""KL estimates against scipy, brute force in float64, and each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from transformers import PreTrainedModel

from shallow_signals.decoding import (
    continuations,
    exact_kl,
    generate,
    length_control,
    mixing,
    monte_carlo_kl,
    policy,
    reference,
    sequence_kl,
    text_kl,
)
from shallow_signals.decoding import texts as texts_module
from shallow_signals.decoding.kl import argmax_rank, log_probs
from shallow_signals.decoding.mixture import tilt
from shallow_signals.decoding.streams import ESTIMATES, uniforms
from shallow_signals.files import InputError
from two_models import adapter, next_logps, some_prompts, two_models

Models = tuple[PreTrainedModel, PreTrainedModel]


@pytest.fixture(scope="module", params=["llama3", "gemma"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return two_models(request.param, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def states(models: Models) -> tuple[torch.Tensor, torch.Tensor]:
    """Both models' log-probabilities after 12 prompts."""
    prompts = some_prompts(12)
    own, other = (torch.cat([next_logps(model, prompt) for prompt in prompts]) for model in models)
    return own, other


def brute_force(own: torch.Tensor, other: torch.Tensor) -> float:
    """One position's KL in float64, by scipy, from a row of logits or log-probabilities each."""
    p, q = (np.exp(x.double().log_softmax(-1).numpy()) for x in (own, other))
    return float(entropy(p, q))


def test_exact_kl_equals_brute_force(states: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = exact_kl(*states)
    truth = [brute_force(p, q) for p, q in zip(*states, strict=True)]
    assert min(truth) > 0.01
    np.testing.assert_allclose(found.numpy(), truth, rtol=1e-6, atol=1e-6)
    backwards = exact_kl(states[1], states[0])
    assert np.abs(backwards.numpy() - truth).max() > 0.01  # the direction matters, and the check would notice
    assert torch.equal(exact_kl(states[0], states[0]), torch.zeros(12))


def test_kl_of_the_mixture_rises_with_a_by_its_variance(states: tuple[torch.Tensor, torch.Tensor]) -> None:
    own, other = (x.double() for x in states)
    grid = [0.0, 0.1, 0.3, 0.5, 1.0, 1.5, 2.0]

    def kl(a: float) -> torch.Tensor:
        mixed = tilt(own, other, torch.full((12,), a))
        return (mixed.exp() * (mixed - other)).sum(-1)

    curve = torch.stack([exact_kl(tilt(*states, torch.full((12,), a)), states[1]) for a in grid])
    assert (curve.diff(dim=0) > 0).all()
    for a in (0.3, 1.5):
        p = tilt(own, other, torch.full((12,), a)).exp()
        ratio = own - other
        variance = (p * ratio**2).sum(-1) - (p * ratio).sum(-1) ** 2
        slope = (kl(a + 1e-3) - kl(a - 1e-3)) / 2e-3
        torch.testing.assert_close(slope, a * variance, rtol=1e-3, atol=1e-6)


def test_monte_carlo_covers_the_exact_kl_in_95_percent(states: tuple[torch.Tensor, torch.Tensor]) -> None:
    own, other = states
    repeats, inside, biased = 300, 0, 0
    for row in range(12):
        p, q = (x[row : row + 1].expand(repeats, -1) for x in (own, other))
        numbers = uniforms(range(repeats), [row + 1], 1000, ESTIMATES)[:, 0]
        mean, error = monte_carlo_kl(p, q, torch.from_numpy(numbers))
        inside += int(((mean - brute_force(own[row], other[row])).abs() < 1.96 * error).sum())
        biased += int(((mean - 1.25 * brute_force(own[row], other[row])).abs() < 1.96 * error).sum())
    assert 0.935 < inside / (12 * repeats) < 0.965
    assert biased / (12 * repeats) < 0.6


def test_monte_carlo_may_be_negative_where_the_exact_kl_is_not() -> None:
    own = log_probs(torch.tensor([[0.0, 0.001, 0.0]]))
    numbers = torch.from_numpy(uniforms(range(50), [1], 100, ESTIMATES)[:, 0])
    mean, _ = monte_carlo_kl(own.expand(50, -1), log_probs(torch.zeros(50, 3)), numbers)
    assert (mean < 0).any()


def test_rank_of_the_likeliest_token() -> None:
    own = log_probs(torch.tensor([[5.0, 1.0, 0.0], [0.0, 5.0, 1.0], [0.0, 1.0, 5.0]]))
    other = log_probs(torch.tensor([[3.0, 2.0, 1.0]] * 3))
    assert argmax_rank(own, other).tolist() == [1, 2, 3]


def test_kl_on_given_texts_equals_reading_them_one_by_one(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "_PIECE", 7 * 480)  # several pieces a batch
    prompts = some_prompts(5, seed=1)
    responses = [some_prompts(1 + i % 3, seed=10 + i) for i in range(5)]
    responses[2].append([])
    found = text_kl(*models, list(zip(prompts, responses, strict=True)), token_budget=80)
    for prompt, answers, results in zip(prompts, responses, found, strict=True):
        assert len(results) == len(answers)
        for answer, result in zip(answers, results, strict=True):
            assert len(result.kl) == len(result.log_ratio) == len(result.argmax_rank) == len(answer)
            for t, token in enumerate(answer):
                own, other = (next_logps(model, [*prompt, *answer[:t]])[0] for model in models)
                assert result.kl[t] == pytest.approx(brute_force(own, other), abs=2e-5)
                assert result.log_ratio[t] == pytest.approx(float(own[token] - other[token]), abs=2e-5)
                assert result.argmax_rank[t] == int((other > other[own.argmax()]).sum()) + 1


def test_kl_on_the_policys_own_samples_is_the_same_read_afterwards(models: Models) -> None:
    prompts = some_prompts(4, seed=2)
    made = generate(*models, prompts, [policy()], max_new_tokens=12, end_ids=[], seed=5)
    read = text_kl(*models, [(p, [g.tokens.tolist()]) for p, g in zip(prompts, made, strict=True)])
    for g, (result,) in zip(made, read, strict=True):
        np.testing.assert_allclose(g.kl_policy_reference, result.kl, atol=2e-5)
        np.testing.assert_allclose(g.log_ratio, result.log_ratio, atol=2e-5)
        np.testing.assert_array_equal(g.argmax_rank, result.argmax_rank)


def test_monte_carlo_on_texts_scatters_about_the_exact_kl(models: Models) -> None:
    texts = list(zip(some_prompts(6, seed=3), ([r] for r in some_prompts(6, seed=4)), strict=True))
    exact = np.concatenate([r.kl for (r,) in text_kl(*models, texts)])
    drawn = np.concatenate([r.kl for (r,) in text_kl(*models, texts, monte_carlo=1000, seed=1)])
    again = np.concatenate([r.kl for (r,) in text_kl(*models, texts, monte_carlo=1000, seed=1, token_budget=30)])
    assert not np.array_equal(exact, drawn)
    np.testing.assert_allclose(drawn, again, atol=0.01)  # rounding may move a draw or two of the thousand
    assert abs(float((drawn - exact).mean())) < 0.03
    assert 0.9 < np.corrcoef(exact, drawn)[0, 1] < 1


def test_an_adapter_is_read_against_its_base(models: Models, tmp_path: Path) -> None:
    _, base = two_models("llama3", tmp_path)
    texts = list(zip(some_prompts(3), ([r] for r in some_prompts(3, seed=6)), strict=True))
    _, plain = two_models("llama3", tmp_path)
    tuned = adapter(base)
    shared = text_kl(tuned, None, texts)
    apart = text_kl(tuned.merge_and_unload(), plain, texts)  # type: ignore[operator]
    for (one,), (two,) in zip(shared, apart, strict=True):
        assert one.kl.min() > 0
        np.testing.assert_allclose(one.kl, two.kl, rtol=1e-4, atol=1e-5)


def test_an_empty_prompt_is_refused(models: Models) -> None:
    with pytest.raises(InputError, match="text 1: its prompt is empty"):
        text_kl(*models, [([5], [[6]]), ([], [[6]])])


def test_sequence_kl_rao_blackwellised_and_sampled_agree_on_average(models: Models) -> None:
    made = generate(
        *models,
        some_prompts(1),
        [mixing(0.5), length_control(3), reference()],
        samples=800,
        max_new_tokens=6,
        end_ids=[7],
        seed=2,
        batch_size=2400,
    )
    for name in ("mix0.50", "length3"):
        exact, sampled = np.array([sequence_kl(g) for g in made if g.strategy == name]).T
        difference = sampled - exact
        assert abs(difference.mean()) < 4 * difference.std() / len(difference) ** 0.5
        assert exact.std() < sampled.std()
        assert exact.mean() > 0.05
    assert all(sequence_kl(g) == (0.0, 0.0) for g in made if g.strategy == "reference")


def test_sequence_kl_needs_measures(models: Models) -> None:
    made = generate(*models, some_prompts(1), [policy()], max_new_tokens=2, end_ids=[], seed=0, kl=False)
    with pytest.raises(ValueError, match="kl=True"):
        sequence_kl(made[0])


def test_continuations_start_from_the_first_tokens_of_longer_responses(models: Models) -> None:
    prompts, responses = [[11, 12], [13], [14, 15]], [[21, 22, 23], [31, 32], [41, 42, 43, 44]]
    extended, kept = continuations(prompts, responses, 2)
    assert kept == [0, 2]
    assert extended == [[11, 12, 21, 22], [14, 15, 41, 42]]
    made = generate(*models, extended, [policy()], max_new_tokens=3, end_ids=[], seed=0)
    own, other = (next_logps(model, extended[1])[0] for model in models)
    assert made[1].kl_policy_reference is not None
    assert made[1].kl_policy_reference[0] == pytest.approx(brute_force(own, other), abs=2e-5)
