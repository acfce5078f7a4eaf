"""Grouped attention against torch's and transformers' own, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import checkpoints
from shallow_signals.models import attention
from shallow_signals.models.attention import GROUPED, grouped_attention, with_grouped_attention
from shallow_signals.models.load import load_causal_lm
from shallow_signals.models.tree import Segment, batch_rows, fitted_inputs

Checkpoint = Callable[[Path], Path]


def asked(heads: int, groups: int, places: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and a mask under which every place sees itself and some of the others."""
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, number, places, 4, generator=draw, requires_grad=True) for number in (heads, groups, groups)
    )
    hidden = torch.rand(3, 1, places, places, generator=draw) < 0.5
    hidden &= ~torch.eye(places, dtype=torch.bool)
    return query, key, value, torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)


def gradients(function: Callable[..., tuple[Tensor, None]], *inputs: Tensor, scaling: float | None) -> list[Tensor]:
    """What it gives for the inputs, and the gradients of a sum with fixed weights."""
    module = nn.Module()
    module.num_key_value_groups = inputs[0].shape[1] // inputs[1].shape[1]  # type: ignore[assignment]
    found, _ = function(module, *inputs, scaling=scaling)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    return [found, *torch.autograd.grad((found * weights).sum(), inputs[:3])]


@pytest.mark.parametrize("longest", [1024, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (4, 4), (3, 1)])
def test_it_is_sdpa_forward_and_backward(
    heads: int, groups: int, scaling: float | None, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By products, and by the fused kernel where rows are longer; with the groups mixed up it is something else."""
    monkeypatch.setattr(attention, "_LONGEST", longest)
    inputs = asked(heads, groups)
    expected = gradients(sdpa_attention_forward, *inputs, scaling=scaling)
    for mine, other in zip(gradients(grouped_attention, *inputs, scaling=scaling), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    if groups > 1:
        mixed = inputs[0], inputs[1].flip(1), *inputs[2:]
        assert (gradients(grouped_attention, *mixed, scaling=scaling)[0] - expected[0]).abs().max() > 0.1


def test_what_learns_nothing_is_read_by_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [tensor.detach() for tensor in asked(6, 2)]
    expected, _ = sdpa_attention_forward(SimpleNamespace(num_key_value_groups=3), *inputs)  # type: ignore[arg-type]
    used: list[bool] = []
    real = attention.scaled_dot_product_attention
    monkeypatch.setattr(
        attention, "scaled_dot_product_attention", lambda *a, **k: used.append(k["enable_gqa"]) or real(*a, **k)
    )
    torch.testing.assert_close(grouped_attention(nn.Module(), *inputs)[0], expected)
    assert used == [True]
    grouped_attention(nn.Module(), *asked(6, 2))
    assert used == [True]


def test_scores_that_a_model_changes_further_are_not_mistaken() -> None:
    """A soft cap is refused, as SDPA does, and not forgotten; a bias is added."""
    inputs = asked(4, 4)
    module = nn.Module()
    with pytest.raises(ValueError, match="softcap"):
        grouped_attention(module, *inputs, softcap=50.0)
    bias = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(2))
    found = grouped_attention(module, *inputs, position_bias=bias)[0]
    torch.testing.assert_close(found, grouped_attention(module, *inputs[:3], inputs[3] + bias)[0])
    assert (found - grouped_attention(module, *inputs)[0]).abs().max() > 0.1


@pytest.mark.parametrize("checkpoint", [checkpoints.chatml, checkpoints.llama3, checkpoints.gemma])
def test_a_model_learns_the_same_with_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Losses and gradients of rows that branch, and of plain padded ones; in its folder the model is as before."""
    folder = checkpoint(tmp_path / "base")
    plain, grouped = load_causal_lm(folder), with_grouped_attention(load_causal_lm(folder))
    assert (plain.config._attn_implementation, grouped.config._attn_implementation) == ("sdpa", GROUPED)
    branching = batch_rows([[Segment([10, 11, 12]), Segment([20, 21], 0), Segment([30], 0)], [Segment([5])]], 0)
    padded = {
        "input_ids": torch.tensor([[7, 8, 9, 10], [11, 12, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }
    for inputs, real in ((branching.model_inputs(), [6, 1]), (padded, [4, 2])):
        found = []
        for model in (plain, grouped):
            model.zero_grad()
            logits = model(**fitted_inputs(model, inputs), use_cache=False).logits
            loss = torch.stack([logits[r, :end].logsumexp(-1).sum() for r, end in enumerate(real)]).sum()
            loss.backward()
            found.append((loss, {name: weight.grad.clone() for name, weight in model.named_parameters()}))
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    grouped.save_pretrained(tmp_path / "saved")
    assert GROUPED not in (tmp_path / "saved" / "config.json").read_text()


def test_what_was_asked_for_by_name_stays(tmp_path: Path) -> None:
    model = load_causal_lm(checkpoints.chatml(tmp_path), attention="eager")
    assert with_grouped_attention(model).config._attn_implementation == "eager"
