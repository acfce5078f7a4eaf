"""The sampler against decoding the plain way, transformers' own mixing, the formula's frequencies, and itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoTokenizer, LogitsProcessorList, MistralConfig, MistralForCausalLM, PreTrainedModel
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

import checkpoints
from shallow_signals.decoding import (
    Generation,
    Strategy,
    exact_kl,
    generate,
    kl_threshold,
    length_control,
    mixing,
    policy,
    reference,
    sampling_logps,
    text_kl,
)
from shallow_signals.files import InputError
from two_models import adapter, next_logps, plainly, reading, some_prompts, two_models

Models = tuple[PreTrainedModel, PreTrainedModel]
SWEEP = [
    reference(),
    policy(),
    mixing(0.3),
    mixing(0.7),
    mixing(1.7),
    length_control(0),
    length_control(3),
    length_control(8),
    length_control(math.inf),
    kl_threshold(0.2),
    kl_threshold(0.6),
    kl_threshold(0.4, fallback="mixture"),
    kl_threshold(0.4, monte_carlo=50),
]
END = list(range(10, 60))  # a tenth of the vocabulary ends a response, so that rows finish all the time


@pytest.fixture(scope="module", params=["llama3", "gemma"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return two_models(request.param, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return two_models("llama3", tmp_path_factory.mktemp("models"))


def by_strategy(made: Sequence[Generation]) -> dict[str, list[list[int]]]:
    found: dict[str, list[list[int]]] = {}
    for g in made:
        found.setdefault(g.strategy, []).append(g.tokens.tolist())
    return found


def test_every_strategy_equals_decoding_the_plain_way(models: Models) -> None:
    prompts = some_prompts(4)
    exact = [s for s in SWEEP if not s.monte_carlo]
    names = [f"p{i}" for i in range(4)]
    made = generate(
        *models, prompts, exact, max_new_tokens=10, end_ids=END, seed=4, samples=2, prompt_ids=names, batch_size=50
    )
    assert [(g.prompt_id, g.sample, g.strategy) for g in made] == [
        (name, sample, s.name) for name in names for sample in (0, 1) for s in exact
    ]
    for g, strategy in zip(made, exact * 8, strict=True):
        prompt = prompts[names.index(g.prompt_id)]
        alone = plainly(
            *models, prompt, strategy, prompt_id=g.prompt_id, sample=g.sample, seed=4, tokens=10, end_ids=END
        )
        assert g.tokens.tolist() == alone, g.strategy
        assert g.ended == (alone[-1] in END)
        assert g.response.tolist() == (alone[:-1] if g.ended else alone)
    assert len({len(g.tokens) for g in made}) > 5
    other_seed = plainly(*models, prompts[0], exact[0], prompt_id="p0", seed=5, tokens=10, end_ids=END)
    assert other_seed != made[0].tokens.tolist()


def test_a_model_with_a_sliding_window_keeps_to_it() -> None:
    """Its mask differs by layer or distance, so it is left to transformers; the cache keeps more than the window."""
    config = MistralConfig(
        vocab_size=480, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=5, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(5)
    windowed = [MistralForCausalLM(config).eval() for _ in range(2)]
    prompts, names = some_prompts(4), ["a", "b", "c", "d"]
    made = generate(*windowed, prompts, [mixing(0.5)], max_new_tokens=12, end_ids=[], seed=1, prompt_ids=names)
    for g, prompt in zip(made, prompts, strict=True):
        alone = plainly(*windowed, prompt, mixing(0.5), prompt_id=g.prompt_id, seed=1, tokens=12)
        assert g.tokens.tolist() == alone
    with pytest.raises(InputError, match="window"):
        text_kl(*windowed, [(prompts[0], [prompts[1]])])


def test_what_is_measured_equals_reading_the_text_plainly(models: Models) -> None:
    prompts = some_prompts(3)
    exact = [s for s in SWEEP if not s.monte_carlo]
    made = generate(*models, prompts, exact, max_new_tokens=10, end_ids=END, seed=4)
    for g, (prompt, strategy) in zip(made, [(p, s) for p in prompts for s in exact], strict=True):
        for t, token in enumerate(g.tokens.tolist()):
            own, other = (next_logps(model, [*prompt, *g.tokens[:t].tolist()]) for model in models)
            sampled = sampling_logps([strategy], own, other, t + 1)
            rank = int((other > other[0, own.argmax()]).sum()) + 1
            truth = [exact_kl(own, other), exact_kl(sampled, other), (sampled - other)[:, token], own[:, token]]
            measured = [g.kl_policy_reference, g.kl_sampling_reference, g.log_ratio, g.policy_logp]
            for value, column in zip(truth, measured, strict=True):
                assert column is not None
                assert column[t] == pytest.approx(float(value), abs=3e-5)
            assert g.reference_logp is not None and g.argmax_rank is not None
            assert g.reference_logp[t] == pytest.approx(float(other[0, token]), abs=3e-5)
            assert g.argmax_rank[t] == rank


def test_limits_reduce_to_the_models_token_for_token(models: Models) -> None:
    sweep = [reference(), policy(), mixing(0), mixing(1), length_control(0), length_control(math.inf)]
    sweep += [kl_threshold(-1e-9), kl_threshold(math.inf), length_control(4)]
    found = by_strategy(generate(*models, some_prompts(8), sweep, max_new_tokens=20, end_ids=[], seed=9))
    for name in ("mix0.00", "length0", "thresholdinf"):
        assert found[name] == found["reference"], name
    for name in ("mix1.00", "lengthinf", "threshold-1e-09"):
        assert found[name] == found["policy"], name
    assert found["length4"] not in (found["policy"], found["reference"])
    assert [ids[:4] for ids in found["length4"]] == [ids[:4] for ids in found["policy"]]
    alone = by_strategy(
        generate(models[1], models[1], some_prompts(8), [policy()], max_new_tokens=20, end_ids=[], seed=9)
    )
    assert alone["policy"] == found["reference"]


@pytest.mark.parametrize("a", [0.3, 1.7])
def test_greedy_mixing_equals_transformers_guidance(models: Models, a: float) -> None:
    prompts = some_prompts(9)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    def guided(scale: float, mask_given: bool) -> list[list[int]]:
        mixer = UnbatchedClassifierFreeGuidanceLogitsProcessor(
            guidance_scale=scale,
            model=models[1],
            unconditional_ids=ids,
            unconditional_attention_mask=mask if mask_given else None,
        )
        settings = {"do_sample": False, "max_new_tokens": 24, "min_new_tokens": 24, "pad_token_id": 0}
        made = models[0].generate(
            ids, attention_mask=mask, logits_processor=LogitsProcessorList([mixer]), eos_token_id=None, **settings
        )
        return made[:, width:].tolist()  # type: ignore[no-any-return]

    made = generate(*models, prompts, [mixing(a)], max_new_tokens=24, end_ids=[], seed=0, greedy=True)
    tokens = [g.tokens.tolist() for g in made]
    assert tokens == guided(a, mask_given=True)
    assert tokens != guided(a + 0.3, mask_given=True)
    assert tokens != guided(a, mask_given=False)


@pytest.mark.parametrize("strategy", [mixing(0.4), mixing(1.6), kl_threshold(0.3, fallback="mixture")])
def test_frequencies_match_the_formula(llamas: Models, strategy: Strategy) -> None:
    """Chi-square of 20,000 sampled tokens at each of four states; an average of probabilities must fail it."""
    draws, rejected = 20_000, 0
    for i, prompt in enumerate(some_prompts(4, seed=8)):
        made = generate(
            *llamas,
            [prompt],
            [strategy],
            samples=draws,
            max_new_tokens=1,
            end_ids=[],
            seed=i,
            batch_size=draws,
            kl=False,
            prompt_ids=["x"],
        )
        counts = np.bincount([int(g.tokens[0]) for g in made], minlength=480)
        own, other = (next_logps(model, prompt) for model in llamas)
        truth = sampling_logps([strategy], own, other, 1)[0].double().exp().numpy()
        a = 1.0 if float(exact_kl(own, other)) > 0.3 else 0.5
        a = strategy.parameter if strategy.kind == "mixing" else a
        p, q = (x[0].double().exp().numpy() for x in (own, other))
        assert np.abs(truth - p**a * q ** (1 - a) / (p**a * q ** (1 - a)).sum()).max() < 1e-6
        assert chi_square(counts, truth) > 1e-4
        # The wrong formulas: an average of probabilities, or the two models' roles exchanged.
        wrong = a * p + (1 - a) * q if a < 1 else p ** (1 - a) * q**a / (p ** (1 - a) * q**a).sum()
        rejected += chi_square(counts, wrong) < 1e-4
    assert rejected == 4


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """p-value; tokens expected fewer than 10 times count as one."""
    expected = probabilities / probabilities.sum() * counts.sum()
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    return float(chisquare(observed, np.append(expected[~rare], expected[rare].sum())).pvalue)


def test_neither_batch_size_nor_order_changes_a_response(models: Models) -> None:
    prompts = some_prompts(5)
    sweep = [policy(), mixing(0.3), mixing(1.7), length_control(3), length_control(8), kl_threshold(0.3)]
    sweep += [kl_threshold(0.4, fallback="mixture"), kl_threshold(0.4, monte_carlo=50)]
    settings = {"max_new_tokens": 12, "end_ids": END, "seed": 3, "samples": 2}
    made = {size: generate(*models, prompts, sweep, batch_size=size, **settings) for size in (1, 7, 64)}  # type: ignore[arg-type]
    for size in (1, 7):
        for one, two in zip(made[size], made[64], strict=True):
            assert (one.prompt_id, one.sample, one.strategy) == (two.prompt_id, two.sample, two.strategy)
            assert one.tokens.tolist() == two.tokens.tolist(), (size, one.strategy)
            assert one.kl_policy_reference is not None and two.kl_policy_reference is not None
            np.testing.assert_allclose(one.kl_policy_reference, two.kl_policy_reference, atol=3e-5)
    back = generate(*models, prompts[::-1], sweep[::-1], batch_size=20, **settings)  # type: ignore[arg-type]
    there = {(g.prompt_id, g.sample, g.strategy): g.tokens.tolist() for g in made[64]}
    assert all(there[g.prompt_id, g.sample, g.strategy] == g.tokens.tolist() for g in back)


def test_a_sweep_shares_what_it_can_and_changes_nothing(llamas: Models) -> None:
    prompts = some_prompts(4)
    sweep = [length_control(t) for t in (2, 5, 9, 14)]
    settings = {"max_new_tokens": 16, "end_ids": [], "seed": 6}
    with reading(llamas[0]) as together:
        forked = by_strategy(generate(*llamas, prompts, sweep, **settings))  # type: ignore[arg-type]
    assert together[0][0] == 4  # each prompt is read once for the four strategies
    assert together[1][0] == together[2][0] == 4  # and so are the tokens before the first fork
    assert together[-1][0] > 8
    for strategy in sweep:
        with reading(llamas[0]) as alone:
            assert (
                by_strategy(generate(*llamas, prompts, [strategy], **settings))[strategy.name] == forked[strategy.name]
            )  # type: ignore[arg-type]
        assert [rows for rows, _ in alone] == [4] * 16


def test_a_model_that_no_row_needs_is_not_run(llamas: Models) -> None:
    prompts = some_prompts(3)

    def read(*strategies: Strategy) -> tuple[list[tuple[int, int]], list[tuple[int, int]], dict[str, list[list[int]]]]:
        with reading(llamas[0]) as own, reading(llamas[1]) as other:
            made = generate(*llamas, prompts, strategies, max_new_tokens=12, end_ids=[], seed=2, kl=False)
        assert made[0].kl_policy_reference is None and made[0].argmax_rank is None
        return own, other, by_strategy(made)

    width = max(map(len, prompts))
    full = by_strategy(generate(*llamas, prompts, SWEEP, max_new_tokens=12, end_ids=[], seed=2))
    own, other, tokens = read(length_control(3))
    assert own == [(3, width), (3, 1), (3, 1)]
    assert other[0] == (3, width + 3)  # what it missed, in one pass
    assert len(other) == 9
    assert tokens["length3"] == full["length3"]
    assert read(policy())[1] == [] and read(mixing(1))[1] == []
    assert read(reference())[0] == [] and read(length_control(0))[0] == []
    own, other, tokens = read(reference(), length_control(3), length_control(8), policy(), mixing(0.3))
    assert own[-1][0] == 6 and other[-1][0] <= 12  # policy and mixture; all but the policy
    assert tokens == {name: full[name] for name in tokens}
    own, other, tokens = read(kl_threshold(0.2), policy(), kl_threshold(0.4, monte_carlo=50))
    assert len(own) == len(other) == 12
    assert tokens == {name: full[name] for name in tokens}


def test_an_adapter_policy_equals_its_merged_weights(llamas: Models, tmp_path: Path) -> None:
    _, base = two_models("llama3", tmp_path)
    prompts = some_prompts(5)
    settings = {"max_new_tokens": 14, "end_ids": [], "seed": 1}
    tuned = adapter(base)
    shared = generate(tuned, None, prompts, SWEEP, **settings)  # type: ignore[arg-type]
    named = generate(tuned, base, prompts, SWEEP, **settings)  # type: ignore[arg-type]
    merged = tuned.merge_and_unload()  # type: ignore[operator]
    apart = generate(merged, llamas[1], prompts, SWEEP, **settings)  # type: ignore[arg-type]
    assert by_strategy(shared) == by_strategy(named) == by_strategy(apart)
    found = by_strategy(shared)
    assert found["policy"] != found["reference"]
    alone = generate(llamas[1], llamas[1], prompts, [policy()], **settings)  # type: ignore[arg-type]
    assert found["reference"] == by_strategy(alone)["policy"]


def test_models_in_training_mode_are_read_without_dropout_and_left_as_they_were(llamas: Models) -> None:
    before = by_strategy(generate(*llamas, some_prompts(2), [policy()], max_new_tokens=5, end_ids=[], seed=0))
    llamas[0].train()
    try:
        after = by_strategy(generate(*llamas, some_prompts(2), [policy()], max_new_tokens=5, end_ids=[], seed=0))
        assert llamas[0].training
    finally:
        llamas[0].eval()
    assert before == after


def test_different_vocabularies_are_refused(llamas: Models, tmp_path: Path) -> None:
    _, other = two_models("gemma", tmp_path)
    other.resize_token_embeddings(481)
    call = {"prompts": [[5]], "strategies": [policy()], "max_new_tokens": 2, "end_ids": [], "seed": 0}
    with pytest.raises(InputError, match="480 and 481"):
        generate(llamas[0], other, **call)  # type: ignore[arg-type]
    ours, theirs = (
        AutoTokenizer.from_pretrained(f(tmp_path / f.__name__)) for f in (checkpoints.llama3, checkpoints.gemma)
    )
    with pytest.raises(InputError, match="differ in vocabulary"):
        generate(*llamas, **call, tokenizers=(ours, theirs))  # type: ignore[arg-type]
    generate(*llamas, **call, tokenizers=(ours, ours))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": [[5], []]}, "it is empty"),
        ({"prompts": [[5, 480]]}, "outside the vocabulary of 480"),
        ({"prompts": [[5] * 2040]}, "exceed the models' 2048 positions"),
        ({"prompt_ids": ["a"]}, "1 ids for 2 prompts"),
        ({"prompt_ids": ["a", "a"]}, "'a' stands more than once"),
        ({"strategies": [mixing(0.5), mixing(0.5)]}, "mix0.50 is given more than once"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 is too few"),
        ({"reference": None}, "reference: none is given"),
    ],
)
def test_bad_input_is_named_in_one_line(llamas: Models, change: dict[str, object], message: str) -> None:
    call = {"policy": llamas[0], "reference": llamas[1], "prompts": [[5], [6]], "strategies": [policy()]}
    settings = {"max_new_tokens": 20, "end_ids": [], "seed": 0}
    with pytest.raises(InputError, match=message) as caught:
        generate(**{**call, **settings, **change})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_prompt_given_twice_gets_two_streams(llamas: Models) -> None:
    made = generate(*llamas, [[5, 6], [5, 6]], [policy()], max_new_tokens=12, end_ids=[], seed=0)
    assert made[0].prompt_id != made[1].prompt_id
    assert made[0].tokens.tolist() != made[1].tokens.tolist()
