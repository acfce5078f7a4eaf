"""One token at a time through the lean step against transformers' own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache, DynamicCache

from shallow_signals.decoding.cache import RowLayer
from shallow_signals.decoding.llama import LlamaStep, is_plain_llama
from shallow_signals.decoding.pair import pair_models

PADS = torch.tensor([[0], [3], [5]])
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8, "rope_theta": 1e4}  # fmt: skip


def llama(**changes: Any) -> LlamaForCausalLM:
    """A Llama with grouped heads, far enough from its start that every part of it counts."""
    torch.manual_seed(3)
    shape = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # norms, and biases where there are any
                weight += 0.3 * torch.randn_like(weight)
    return model


@torch.inference_mode()
def by_both(model: Any, base: Any, late: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the last six tokens of left-padded rows: transformers', and the step's at positions `late` by some."""
    ids = torch.randint(0, 90, (3, 14), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(14) >= PADS
    positions = (torch.arange(14) - PADS).clamp(min=0)
    whole = model(input_ids=ids, attention_mask=mask.long(), position_ids=positions).logits[:, 8:]
    cache = Cache(layer_class_to_replicate=RowLayer)
    start = {"attention_mask": mask[:, :8].long(), "position_ids": positions[:, :8]}
    model(input_ids=ids[:, :8], past_key_values=cache, use_cache=True, **start)
    step = LlamaStep(base)
    added = torch.where(mask, 0.0, -torch.inf).to(base.dtype)[:, None, None]
    steps = [
        step(ids[:, t : t + 1], positions[:, t : t + 1] + late, added[..., : t + 1], cache.layers) for t in range(8, 14)
    ]
    return whole, torch.stack(steps, dim=1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4, "tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 16},
        {"rope_parameters": SCALED},
    ],
)
def test_a_step_equals_transformers(changes: dict[str, Any]) -> None:
    model = llama(**changes)
    whole, steps = by_both(model, model)
    torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-4)
    whole, late = by_both(model, model, late=1)
    assert (late - whole).abs().max() > 0.1


def test_a_step_of_an_adapter_equals_transformers_switched_on_and_off() -> None:
    model = llama()
    torch.manual_seed(5)
    shape = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    tuned = get_peft_model(model, shape).eval()  # type: ignore[arg-type]
    pair = pair_models(tuned)
    found = []
    for side in (pair.policy, pair.reference):
        with side.active():
            whole, steps = by_both(tuned, side.base)
        torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-4)
        found.append(steps)
    assert (found[0] - found[1]).abs().max() > 0.1


def test_rounding_in_bfloat16_is_of_the_size_of_transformers_own() -> None:
    model = llama()
    exact, _ = by_both(model, model)
    whole, steps = by_both(model.to(torch.bfloat16), model)
    assert (steps - exact).abs().mean() < 1.5 * (whole - exact).abs().mean()


def test_only_a_plain_llama_takes_the_step() -> None:
    model = llama()
    assert is_plain_llama(model, model)
    eager = llama(attn_implementation="eager")
    assert not is_plain_llama(eager, eager)
    shape = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 16}
    gemma = GemmaForCausalLM(GemmaConfig(**shape, num_attention_heads=2, num_key_value_heads=1))
    assert not is_plain_llama(gemma, gemma)
    prompted = get_peft_model(llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))  # type: ignore[arg-type]
    assert not is_plain_llama(prompted, prompted.get_base_model())
    spread = llama()
    spread.hf_device_map = {"": "cpu"}
    assert not is_plain_llama(spread, spread)


@torch.inference_mode()
def test_a_prompt_is_read_without_copying_the_output_weights() -> None:
    """In bfloat16 a slice of the last position has torch repeat them for every row: 2 GB for 32 rows of SmolLM2."""
    model = llama(vocab_size=4000).to(torch.bfloat16)
    side = pair_models(model, model).policy
    ids = torch.randint(0, 90, (16, 5))
    positions, mask = torch.arange(5).expand(16, -1), torch.ones_like(ids)

    def most(job: Callable[[], Any]) -> int:
        """The most memory that one operation takes, in bytes."""
        with torch.profiler.profile(profile_memory=True) as profile:
            job()
        return max(event.self_cpu_memory_usage for event in profile.events() or ())

    copies = 16 * model.lm_head.weight.nbytes
    assert most(lambda: side(ids, positions, mask, DynamicCache())) < copies / 8
    assert most(lambda: model(ids, logits_to_keep=1)) >= copies
