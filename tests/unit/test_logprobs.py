"""One-pass log-probabilities against scoring every truncated response by itself, the plain way."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import checkpoints
from shallow_signals.files import InputError
from shallow_signals.models.logprobs import PairTokens, cut_lengths, length_groups, score_rows
from shallow_signals.models.vocabulary import learned_logprobs, vocabulary_logprobs

CUTS = [10, 25, 50, 75, 100]
CLOSINGS = {"none": [], "one token": [5], "two tokens": [5, 9]}


@pytest.fixture(scope="module", params=["llama3", "gemma"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    make: Callable[[Path], Path] = getattr(checkpoints, request.param)
    folder = make(tmp_path_factory.mktemp(request.param))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def pairs() -> list[PairTokens]:
    random = np.random.default_rng(0)

    def ids(n: int) -> list[int]:
        return [int(i) for i in random.integers(10, 300, n)]

    made = [PairTokens(ids(p), ids(c), ids(r)) for p, c, r in random.integers(1, 30, (12, 3))]
    return [*made, PairTokens(ids(4), ids(1), ids(1)), PairTokens([], ids(7), ids(3))]


@torch.no_grad()
def plain(model: PreTrainedModel, prompt: list[int], response: list[int]) -> float:
    """Sum of log p over the response's tokens in one ordinary row, nothing shared, nothing masked."""
    ids = torch.tensor([[*prompt, *response]])
    logps = model(ids).logits[0].double().log_softmax(-1)
    places = range(max(len(prompt), 1), ids.shape[1])
    return sum(float(logps[i - 1, ids[0, i]]) for i in places)


@pytest.mark.parametrize("closing", CLOSINGS.values(), ids=CLOSINGS.keys())
def test_every_cut_equals_scoring_the_cut_response_by_itself(
    model: PreTrainedModel, pairs: list[PairTokens], closing: list[int]
) -> None:
    results = score_rows(model, pairs, closing, cuts=CUTS, max_length=512)
    for pair, scored in zip(pairs, results, strict=True):
        for response, found in zip((pair.chosen, pair.rejected), scored, strict=True):
            prefix = np.cumsum(found.tokens)
            ends = dict(zip(found.closing_at.tolist(), found.closing.tolist(), strict=True))
            for t in cut_lengths(len(response), CUTS):
                kept = list(response[:t])
                assert prefix[t - 1] == pytest.approx(plain(model, list(pair.prompt), kept), abs=1e-4)
                if closing:
                    whole = plain(model, list(pair.prompt), kept + closing)
                    assert prefix[t - 1] + ends[t] == pytest.approx(whole, abs=1e-4)
            if len(closing) == 1:
                assert found.closing_at.tolist() == list(range(1, len(response) + 1))


def test_a_scorer_that_sees_ahead_or_is_shifted_fails_the_same_check(pairs: list[PairTokens], tmp_path: Path) -> None:
    """Negative control: an untruncated row's prefix sums under a model without causality, and sums shifted by one."""
    model = AutoModelForCausalLM.from_pretrained(checkpoints.llama3(tmp_path), dtype=torch.float32).eval()
    pair = pairs[0]
    prompt, response = list(pair.prompt), list(pair.chosen)
    truth = plain(model, prompt, response[: len(response) // 2])
    (chosen, _), *_ = score_rows(model, [pair], [], max_length=512)
    half = len(response) // 2
    assert np.cumsum(chosen.tokens)[half - 1] == pytest.approx(truth, abs=1e-4)
    assert abs(np.cumsum(chosen.tokens)[half] - truth) > 1e-2  # shifted
    ids = torch.tensor([[*prompt, *response]])
    everywhere = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
    with torch.no_grad():
        logps = model(ids, attention_mask=everywhere).logits[0].log_softmax(-1)
    places = range(len(prompt), len(prompt) + half)
    bidirectional = sum(float(logps[i - 1, ids[0, i]]) for i in places)
    assert abs(bidirectional - truth) > 1e-2


def test_changing_one_response_leaves_the_other_alone(model: PreTrainedModel, pairs: list[PairTokens]) -> None:
    other = [PairTokens(p.prompt, [*p.rejected, 11, 12], p.rejected) for p in pairs]
    before = score_rows(model, pairs, [5, 9], cuts=CUTS, max_length=512)
    after = score_rows(model, other, [5, 9], cuts=CUTS, max_length=512)
    for (_, a), (_, b) in zip(before, after, strict=True):
        np.testing.assert_allclose(a.tokens, b.tokens, atol=2e-5)
        np.testing.assert_allclose(a.closing, b.closing, atol=2e-5)


def test_batching_changes_nothing(model: PreTrainedModel, pairs: list[PairTokens]) -> None:
    whole = score_rows(model, pairs, [5], max_length=512, token_budget=10**6)
    single = score_rows(model, pairs, [5], max_length=512, token_budget=1)
    turned = score_rows(model, pairs[::-1], [5], max_length=512, token_budget=300)[::-1]
    for results in (single, turned):
        for a, b in zip(whole, results, strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_allclose(x.tokens, y.tokens, atol=1e-5)
                np.testing.assert_allclose(x.closing, y.closing, atol=1e-5)


def test_pieces_of_the_vocabulary_add_up(model: PreTrainedModel) -> None:
    hidden = torch.randn(7, model.config.hidden_size)
    where = torch.tensor([0, 0, 2, 3, 3, 6])
    targets = torch.tensor([1, 7, 3, 300, 0, 12])
    whole = model.get_output_embeddings()(hidden).log_softmax(-1)[where, targets]
    for rows, columns in ((1, 1), (3, 17), (100, 10**6)):
        found = vocabulary_logprobs(model, hidden, where, targets, rows=rows, columns=columns)
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_through_pieces_equal_those_of_whole_logits(
    model: PreTrainedModel, cap: float | None, bias: bool
) -> None:
    """Against autograd on the logits of all places at once; the cap is Gemma 2's."""
    model = deepcopy(model)
    head = model.get_output_embeddings()
    model.config.final_logit_softcapping = cap
    if bias:
        head.bias = torch.nn.Parameter(torch.randn(head.weight.shape[0]))
    hidden = torch.randn(7, model.config.hidden_size, requires_grad=True)
    where, targets = torch.tensor([0, 0, 2, 3, 3, 6]), torch.tensor([1, 7, 3, 300, 300, 12])
    leaves = [hidden, head.weight, *([head.bias] if bias else [])]
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
    logits = cap * torch.tanh(logits / cap) if cap else logits
    whole = logits.log_softmax(-1)[where, targets]
    weights = torch.randn(6)
    expected = torch.autograd.grad((whole * weights).sum(), leaves)
    for rows in (1, 3, 100):
        found = learned_logprobs(model, hidden, where, targets, rows=rows)
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)
        for one, other in zip(torch.autograd.grad((found * weights).sum(), leaves), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_model_that_scales_its_logits_is_refused(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.config, "logit_scale", 0.5, raising=False)
    with pytest.raises(InputError, match="logit_scale"):
        score_rows(model, [PairTokens([1], [2], [3])], [], max_length=8)


def test_length_groups_hold_every_index_once_within_the_budget() -> None:
    lengths = [5, 100, 7, 7, 60, 1]
    groups = list(length_groups(lengths, 120))
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= 120 for g in groups)


def test_a_long_prompt_is_cut_on_the_left(model: PreTrainedModel) -> None:
    pair = PairTokens(list(range(10, 60)), [70, 71], [72])
    for bos_id, prompt in ((None, list(range(53, 60))), (10, [10, *range(54, 60)]), (11, list(range(53, 60)))):
        (chosen, _), *_ = score_rows(model, [pair], [5], max_length=10, bos_id=bos_id)
        assert float(chosen.tokens.sum()) == pytest.approx(plain(model, prompt, [70, 71]), abs=1e-4)
