"""Training recipes. Names follow the papers' and transformers' own."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from shallow_signals.config.base import Closed


class Lora(Closed):
    """A low-rank adapter on all linear layers (peft)."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    first_layer: int = Field(default=0, ge=0)  # those below it have no adapter

    def share(self, layers: int) -> float:
        """Of a model's layers, those that are adapted."""
        return max(0.0, 1.0 - self.first_layer / layers)


class Recipe(Closed):
    """What reward models and DPO share."""

    backend: Literal["trl", "openrlhf"] = "trl"  # openrlhf: on GPUs only, weights sharded over them (ZeRO-3)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = Field(default=1.0, ge=0)
    epochs: float = Field(default=1.0, gt=0)
    schedule: Literal["cosine", "cosine_with_min_lr", "linear", "constant_with_warmup"] = "cosine"
    min_lr_ratio: float = Field(default=0.0, ge=0, lt=1)  # read by cosine_with_min_lr only
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    optimizer: Literal["adamw_torch", "paged_adamw_32bit"] = "adamw_torch"  # on CPU adamw_torch stands in
    global_batch: int = Field(ge=1)  # pairs per optimiser step, over all GPUs
    max_length: int = Field(ge=8)  # tokens of prompt + response + closing; cut on the left
    weights: Literal["float32", "bfloat16"] = "float32"  # of trained weights; an adapter is float32
    compute: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the device is fast at it
    end_of_turn: Literal["keep", "drop"] = "keep"  # whether a cut response is closed as a whole one is
    lora: Lora | None = None
    # Performance settings: they change the speed, not the gradient.
    micro_batch: int = Field(default=8, ge=1)  # pairs per forward pass
    sort_in_step: bool = True
    share_prompt: bool = True
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    checkpoint_every: int = Field(default=50, ge=1)  # optimiser steps between resumable states

    def backward_share(self, layers: int) -> float:
        """Of a model's layers, those that a backward pass goes through: all of them where they are checkpointed."""
        return 1.0 if self.lora is None or self.gradient_checkpointing else self.lora.share(layers)

    @model_validator(mode="before")
    @classmethod
    def _unsorted_and_unshared(cls, values: Any) -> Any:
        """OpenRLHF neither sorts the pairs of a step nor shares prompts: there both default to false."""
        if isinstance(values, dict) and values.get("backend") == "openrlhf":
            return {"sort_in_step": False, "share_prompt": False, **values}
        return values

    @model_validator(mode="after")
    def _backend_can(self) -> Self:
        if self.backend != "openrlhf":
            return self
        impossible = {
            "end_of_turn: must be keep, because it ends every text with EOS": self.end_of_turn == "drop",
            "lora: must be null, because it saves adapters as pickles under ZeRO-3": self.lora is not None,
            "weights: must be float32, because DeepSpeed updates float32 weights": self.weights != "float32",
            "compute: must be auto or bfloat16, the only type it computes in here": self.compute == "float32",
            "optimizer: must be adamw_torch, because DeepSpeed brings its own AdamW": self.optimizer != "adamw_torch",
            "epochs: must be a whole number": self.epochs != int(self.epochs),
            "sort_in_step: must be false, because it draws micro-batches at random": self.sort_in_step,
            "share_prompt: must be false, because it reads each response with its own prompt": self.share_prompt,
        }
        if found := [reason for reason, wrong in impossible.items() if wrong]:
            raise ValueError("backend openrlhf: " + "; ".join(found) + "; or choose backend trl")
        return self


class RewardRecipe(Recipe):
    """A Bradley-Terry reward model."""


class DPORecipe(Recipe):
    """Direct preference optimisation against a frozen reference."""

    beta: float = Field(default=0.1, gt=0)
