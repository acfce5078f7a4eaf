"""A policy and its reference as two callable sides, sharing weights where the policy is an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from shallow_signals.decoding.llama import LlamaStep, is_plain_llama
from shallow_signals.files import InputError
from shallow_signals.models.tree import refuse_unsupported


@dataclass(frozen=True)
class Side:
    """One of the two models. The reference of an adapter policy is the policy with its adapter switched off."""

    model: nn.Module
    switched_off: Sequence[Any] = ()  # the adapter layers to switch off while this side computes

    @cached_property
    def base(self) -> Any:
        """The model inside any adapter."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model  # type: ignore[operator]

    @cached_property
    def takes_masks(self) -> bool:
        """Whether one mask [rows, 1, 1, places], added to the attention, serves every layer of the model."""
        try:
            refuse_unsupported(self.base)
        except InputError:
            return False
        return bool(self.base.config.get_text_config()._attn_implementation == "sdpa")

    @cached_property
    def step(self) -> LlamaStep | None:
        """A shorter way to the logits after one more token, where the model is one for which there is one."""
        return LlamaStep(self.base) if is_plain_llama(self.model, self.base) else None

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The model, computing as this side does."""
        # peft's own switch walks all modules and takes 10-20 ms a call: more than a token costs a small model.
        for layer in self.switched_off:
            layer._disable_adapters = True
        try:
            yield self.model
        finally:
            for layer in self.switched_off:
                layer._disable_adapters = False

    def __call__(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """Logits after the last of the new tokens, [rows, vocabulary].

        `ids` and `positions` of the new tokens are [rows, new]; `mask` tells which places hold a token, the new ones
        included: 1 or 0, [rows, places]; or for one new token, where the side `takes_masks`, 0 or minus infinity,
        [rows, 1, 1, places].
        """
        with self.active() as model:
            if mask.dim() == 4 and self.step:
                return self.step(ids, positions, mask, cache.layers)
            # A slice of the last position would make torch copy the output weights for every row; an index doesn't.
            last = torch.tensor([ids.shape[1] - 1], device=ids.device) if ids.shape[1] > 1 else 1
            logits: Tensor = model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=last,
            ).logits
        return logits[:, -1]


@dataclass(frozen=True)
class ModelPair:
    """Two causal language models of one vocabulary."""

    policy: Side
    reference: Side
    vocabulary: int
    max_positions: int | None  # the shorter of the two, where they name one

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Both models without dropout inside the block."""
        with ExitStack() as stack:
            for model in {id(side.model): side.model for side in (self.policy, self.reference)}.values():
                stack.callback(model.train, model.training)
                model.eval()
            yield


def pair_models(
    policy: nn.Module, reference: nn.Module | None = None, tokenizers: tuple[Any, Any] | None = None
) -> ModelPair:
    """Check that `policy` and `reference` speak one vocabulary, and pair them.

    `policy` may be a peft model whose reference is its own base: give None, or the base model it was made of. Different
    sizes of vocabulary, or `tokenizers` (of policy and reference) that differ in a token, are an `InputError`.
    """
    base = policy.get_base_model() if hasattr(policy, "get_base_model") else None  # type: ignore[operator]
    if reference is None and base is None:
        raise InputError("reference: none is given; only a policy that is an adapter has its base for a reference")
    shares = reference is None or reference is base
    other: nn.Module = policy if reference is None or shares else reference
    sizes = [_vocabulary(model) for model in (policy, other)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"policy and reference differ in vocabulary ({sizes[0]} and {sizes[1]} tokens); take two of one family"
        )
    if tokenizers:
        ours, theirs = (tokenizer.get_vocab() for tokenizer in tokenizers)
        if ours != theirs:
            different = min(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
            raise InputError(
                f"policy and reference differ in vocabulary (token {different!r} is {ours.get(different)} and "
                f"{theirs.get(different)}); take two models of one tokenizer"
            )
    limits = [getattr(_config(model), "max_position_embeddings", None) for model in (policy, other)]
    known = [limit for limit in limits if limit]
    return ModelPair(
        Side(policy), Side(other, _adapter_layers(policy) if shares else ()), sizes[0], min(known) if known else None
    )


def _config(model: nn.Module) -> Any:
    return model.config.get_text_config()  # type: ignore[union-attr, operator]


def _vocabulary(model: nn.Module) -> int:
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    head = base.get_output_embeddings()
    return int(head.weight.shape[0] if head is not None else _config(model).vocab_size)


def _adapter_layers(policy: nn.Module) -> list[Any]:
    """The layers in which an adapter adds to its base; a kind that has none can't be switched off here."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = [layer for layer in policy.modules() if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    if not layers or any(layer.disable_adapters for layer in layers):
        raise InputError("policy: no adapter layer that is switched on; load the adapter, or give the reference itself")
    if any(getattr(layer, "merged", False) for layer in layers):
        raise InputError("policy: the adapter is merged into its base; unmerge it, or give the reference itself")
    return layers
