"""The LoRA adapter of a run: on which layers it sits, how precise it is, and what it adds in fewer passes than peft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import Linear, LoraLayer, LoraVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from shallow_signals.config.recipes import Recipe


def lora_config(recipe: Recipe, task_type: str, trained_whole: list[str] | None = None) -> LoraConfig | None:
    """An adapter on all linear layers but the head; None where all weights are trained."""
    if recipe.lora is None:
        return None
    below = "|".join(map(str, range(recipe.lora.first_layer)))
    return LoraConfig(
        task_type=task_type,
        target_modules="all-linear",
        exclude_modules=rf"\D*\.({below})\..*" if below else None,  # a module's first number is its layer's
        modules_to_save=trained_whole,
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
    )


def keep_adapter_precise(model: torch.nn.Module) -> None:
    """Hold the trained part of an adapted model in float32, and let it read its inputs as they come.

    bfloat16 weights swallow small updates; those that stay as they are have none. Under autocast the adapter's products
    are bfloat16 whatever it reads, so that casting its inputs to float32 first, as peft does, changes nothing but time.
    """
    if isinstance(model, PeftModel):
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module.cast_input_dtype_enabled = False


@contextmanager
def added_once(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block an adapted `model` adds its adapter's products as `AddedOnce` does; others stay as they are."""
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    for layer in layers:
        layer.lora_variant.update(dict.fromkeys(layer.active_adapters, AddedOnce()))
    try:
        yield
    finally:
        for layer in layers:
            layer.lora_variant.clear()  # what merges the adapter knows peft's own way


class AddedOnce(LoraVariant):  # type: ignore[misc]
    """peft's result + B(A(x)) scaling, but for rounding: the scaling on the narrow A(x), the sum within the product.

    peft scales and adds in passes of their own over all output features, there and back, for which a CPU takes time.
    """

    @staticmethod
    def forward(module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """Outputs of the adapted layer, [..., outputs], for inputs `x`, [..., inputs]; `result` is without adapter."""
        narrow = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x)) * module.scaling[active_adapter]
        wide = module.lora_B[active_adapter].weight
        return torch.addmm(result.flatten(0, -2), narrow.flatten(0, -2), wide.t()).view_as(result)
