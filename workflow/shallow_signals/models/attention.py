"""Attention on a CPU, where torch's fused kernel is quick at reading and slow at learning.

Its backward pass takes seven times its forward one. Plain products, which keep their probabilities, take a third of its
time for both, up to a thousand tokens or so. And heads that share their keys go through it a third quicker as they are
than with the keys repeated for each of them, as transformers does wherever there is a mask.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from shallow_signals.models.load import pick_device

GROUPED = "grouped"  # its name among transformers' attention functions
_LONGEST = 1024  # tokens of a row from which the fused kernel learns as quickly, and keeps no probabilities
Model = TypeVar("Model", bound=nn.Module)


def with_grouped_attention(model: Model) -> Model:
    """`model`, from now on with `grouped_attention` on a CPU, if it used SDPA; else as it is."""
    if pick_device().type == "cpu" and model.config._attn_implementation == "sdpa":  # type: ignore[union-attr]
        _register()
        model.set_attn_implementation(GROUPED)  # type: ignore[operator]
    return model


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers' `sdpa_attention_forward` gives, but for rounding: [rows, places, heads, size].

    `query` is [rows, heads, places, size], `key` and `value` are [rows, groups of heads, places, size]; the mask is
    added to the scores, [rows, 1, places, places]. What changes the scores beyond that is left to that function, which
    adds a bias and refuses soft caps.
    """
    if any(others.get(name) is not None for name in ("softcap", "position_bias")):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
        return found
    rows, groups, width, size = key.shape
    heads, places = query.shape[1:3]
    mask = attention_mask[..., :width]
    learns = query.requires_grad or key.requires_grad or value.requires_grad
    if not learns or dropout or width > _LONGEST:
        read = scaled_dot_product_attention(query, key, value, mask, dropout, scale=scaling, enable_gqa=True)
    else:
        asked = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows, groups, -1, size)
        weights = ((asked @ key.mT).view(rows, heads, places, width) + mask).softmax(-1)
        read = (weights.to(value.dtype).view(rows, groups, -1, width) @ value).view(rows, heads, places, size)
    return read.transpose(1, 2).contiguous(), None


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(GROUPED, grouped_attention)
    AttentionMaskInterface.register(GROUPED, eager_mask)
