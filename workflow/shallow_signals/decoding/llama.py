"""One more token for many rows of a Llama: the model's own weights and modules, without what surrounds them.

At one token a row, transformers' forward pass spends more time between a small model's products than in them. This is
that pass for this one case: the same arithmetic in fewer operations, without the checks, hooks and output classes on
the way. In half precision a norm is rounded once, where transformers rounds it twice. Other architectures go through
their own forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers import LlamaForCausalLM


def is_plain_llama(model: nn.Module, base: Any) -> bool:
    """Whether `one_token` does what `model` does; `base` is the model inside its adapter, or `model` itself."""
    adapter: Any = getattr(model, "active_peft_config", None)
    return (
        type(base) is LlamaForCausalLM
        and base.config._attn_implementation == "sdpa"
        and not hasattr(base, "hf_device_map")  # spread over devices by hooks of its layers
        and not (adapter and adapter.is_prompt_learning)  # changes the input, not the layers
    )


def one_token(model: Any, ids: Tensor, positions: Tensor, mask: Tensor, layers: Sequence[Any]) -> Tensor:
    """Logits after one more token of each row, [rows, 1, vocabulary].

    `ids` and `positions` are [rows, 1]; `mask` is True where a place, the new one included, holds a token,
    [rows, 1, 1, places]; `layers` are those of the cache, which take in the new keys and values.
    """
    body = model.model
    rows = len(ids)
    hidden = body.embed_tokens(ids)
    cos, sin = body.rotary_emb(hidden, positions)  # [rows, 1, head size]: the same for every head
    half = cos.shape[-1] // 2
    signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    for layer, cache in zip(body.layers, layers, strict=True):
        attention = layer.self_attn
        normed = _normed(layer.input_layernorm, hidden)
        # Queries and keys turn together, each half of a head with the other.
        heads = torch.cat([attention.q_proj(normed), attention.k_proj(normed)], dim=-1).view(rows, -1, 2 * half)
        heads = (heads * cos).add_(heads.roll(half, dims=-1).mul_(signed))
        value = attention.v_proj(normed).view(rows, -1, 1, 2 * half)
        groups = value.shape[1]
        keys, values = cache.update(heads[:, -groups:, None], value)
        # The heads of a group ask the same keys: they stand where several positions of one head would.
        query = heads[:, :-groups].unflatten(1, (groups, -1))
        read = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=attention.scaling)
        hidden = hidden + attention.o_proj(read.reshape(rows, 1, -1))
        hidden = hidden + layer.mlp(_normed(layer.post_attention_layernorm, hidden))
    logits: Tensor = model.lm_head(_normed(body.norm, hidden))
    return logits


def _normed(norm: Any, hidden: Tensor) -> Tensor:
    return rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
