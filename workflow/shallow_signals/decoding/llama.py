"""One more token for many rows of a Llama: the model's own weights and modules, without what surrounds them.

At one token a row, transformers' forward pass spends more time between a small model's products than in them. This is
that pass for this one case: the same arithmetic in fewer operations, without the checks, hooks and output classes on
the way. In half precision a norm is rounded once, where transformers rounds it twice. Other architectures go through
their own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers import LlamaForCausalLM

_ROOM = 128  # positions by which the table of angles grows
_FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")  # others depend on the length of the text
_Map = Callable[[Tensor], Tensor]


def is_plain_llama(model: nn.Module, base: Any) -> bool:
    """Whether `LlamaStep` does what `model` does; `base` is the model inside its adapter, or `model` itself."""
    adapter: Any = getattr(model, "active_peft_config", None)
    return (
        type(base) is LlamaForCausalLM
        and base.config._attn_implementation == "sdpa"
        and base.model.rotary_emb.rope_type in _FIXED_ROTATIONS
        and not hasattr(base, "hf_device_map")  # spread over devices by hooks of its layers
        and not (adapter and adapter.is_prompt_learning)  # changes the input, not the layers
    )


class LlamaStep:
    """A Llama's forward pass for one token a row. What it is made of is looked up once; weights are not copied."""

    def __init__(self, model: Any) -> None:
        self.body = model.model
        self.layers = [_parts(layer) for layer in self.body.layers]
        self.norm, self.head = _norm(self.body.norm), _product(model.lm_head)
        self.angles = torch.empty(0, 0)  # [positions, 2 head sizes]: cosines; sines, the first half with the other sign

    def __call__(self, ids: Tensor, positions: Tensor, mask: Tensor, layers: Sequence[Any]) -> Tensor:
        """Logits after one more token of each row, [rows, vocabulary].

        `ids` and `positions` are [rows, 1]; `mask` is 0 where a place, the new one included, holds a token, and minus
        infinity elsewhere, [rows, 1, 1, places]; `layers` are those of the cache, which take in the new keys and
        values.
        """
        rows = len(ids)
        hidden = self.body.embed_tokens(ids)[:, 0]  # [rows, size], to which every layer adds in place
        if len(self.angles) < mask.shape[-1]:
            self._make_angles(hidden[:, None], mask.shape[-1] + _ROOM)
        cos, sin = embedding(positions, self.angles).chunk(2, dim=-1)  # [rows, 1, head size]: the same for every head
        size = cos.shape[-1]
        for (norm, query, key, value, scale, add_output, norm_after, gate, act, up, add_down), cache in zip(
            self.layers, layers, strict=True
        ):
            normed = norm(hidden)
            # Queries and keys turn together, each half of a head with the other.
            heads = torch.cat([query(normed), key(normed)], dim=-1).view(rows, -1, size)
            heads = torch.addcmul(heads * cos, heads.roll(size // 2, dims=-1), sin)
            new = value(normed).view(rows, -1, 1, size)
            groups = new.shape[1]
            keys, values = cache.update(heads[:, -groups:, None], new)
            # The heads of a group ask the same keys: they stand where several positions of one head would.
            asked = heads[:, :-groups].reshape(rows, groups, -1, size)
            read = scaled_dot_product_attention(asked, keys, values, attn_mask=mask, scale=scale)
            add_output(hidden, read.reshape(rows, -1))
            normed = norm_after(hidden)
            add_down(hidden, act(gate(normed)).mul_(up(normed)))
        return self.head(self.norm(hidden))

    def _make_angles(self, hidden: Tensor, positions: int) -> None:
        cos, sin = self.body.rotary_emb(hidden, torch.arange(positions, device=hidden.device)[None])
        first, second = sin[0].chunk(2, dim=-1)
        self.angles = torch.cat([cos[0], -first, second], dim=-1)


def _parts(layer: Any) -> tuple[Any, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    return (
        _norm(layer.input_layernorm),
        *map(_product, (attention.q_proj, attention.k_proj, attention.v_proj)),
        attention.scaling,
        _added_product(attention.o_proj),
        _norm(layer.post_attention_layernorm),
        _product(mlp.gate_proj),
        _bare(mlp.act_fn),
        _product(mlp.up_proj),
        _added_product(mlp.down_proj),
    )


def _norm(module: Any) -> _Map:
    weight, eps = module.weight, module.variance_epsilon
    return partial(_rms_norm, weight=weight, least=weight.new_full((1, 1), eps, dtype=torch.float32))


def _rms_norm(hidden: Tensor, weight: Tensor, least: Tensor) -> Tensor:
    """`torch.rms_norm` of [rows, size]; a row's length is quicker to have than its squares and their mean."""
    exact = hidden.float()
    length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    scale = torch.addcmul(least, length, length, value=1 / hidden.shape[-1]).rsqrt_()
    return (exact * scale).mul_(weight).to(hidden.dtype)


def _product(module: nn.Module) -> _Map:
    """The product that a module is. Adapters, quantised weights and the like are called as they are."""
    matrix = _matrix(module)
    return _bare(module) if matrix is None else partial(torch.mm, mat2=matrix)


def _added_product(module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """What adds a module's product to a tensor in place, given that tensor and the module's input."""
    matrix, bare = _matrix(module), _bare(module)
    if matrix is None:
        return lambda total, inputs: total.add_(bare(inputs))
    return partial(Tensor.addmm_, mat2=matrix)


def _matrix(module: nn.Module) -> Tensor | None:
    """What a module multiplies its inputs with, where it does nothing else."""
    if isinstance(module, nn.Linear) and type(module) is nn.Linear and module.bias is None:
        return module.weight.T if _bare(module) is not module else None
    return None


def _bare(module: nn.Module) -> _Map:
    """What a module does, past the look for hooks where it has none."""
    forward: _Map = module.forward
    return module if module._forward_hooks or module._forward_pre_hooks else forward
