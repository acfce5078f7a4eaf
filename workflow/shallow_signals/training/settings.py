"""From a recipe to the arguments of a trainer, on the machine at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from shallow_signals.config.recipes import Recipe
from shallow_signals.files import InputError
from shallow_signals.models.load import pick_compute_dtype, pick_device
from shallow_signals.training.steps import accumulation_steps

LOGGED = 50  # entries of a run's loss history, about


def processes() -> int:
    """How many processes train together (set by torchrun)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def compute_type(recipe: Recipe) -> str:
    """The type that products are computed in: `bfloat16` or `float32`.

    `auto` takes bfloat16 where the device is fast at it. Weights kept in bfloat16 are computed with as they are.
    """
    if recipe.weights == "bfloat16":
        if recipe.compute == "float32":
            raise InputError("recipe: weights bfloat16 can't be computed with in float32; set compute to auto")
        return "bfloat16"
    return str(pick_compute_dtype(recipe.compute)).removeprefix("torch.")


def optimizer(recipe: Recipe) -> str:
    """The optimiser that the machine can run: paged AdamW lives on GPUs only, plain AdamW stands in for it."""
    return recipe.optimizer if pick_device().type == "cuda" else "adamw_torch"


def trainer_arguments(recipe: Recipe, *, seed: int, state: Path, steps_per_epoch: int) -> dict[str, Any]:
    """Keyword arguments of TRL's configuration classes; states are saved under `state`.

    Raises `InputError` where the global batch can't be cut evenly. The data set arrives tokenised and cut, so TRL's own
    length filter and column handling are off.
    """
    steps = max(1, round(recipe.epochs * steps_per_epoch))
    min_lr = {"min_lr_rate": recipe.min_lr_ratio} if recipe.schedule == "cosine_with_min_lr" else None
    arguments: dict[str, Any] = {
        "output_dir": str(state),
        "seed": seed,
        "data_seed": seed,
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "adam_beta1": recipe.adam_betas[0],
        "adam_beta2": recipe.adam_betas[1],
        "max_grad_norm": recipe.max_grad_norm,
        "num_train_epochs": recipe.epochs,
        "lr_scheduler_type": recipe.schedule,
        "lr_scheduler_kwargs": min_lr,
        "warmup_steps": recipe.warmup_ratio,  # below one: a share of all steps
        "optim": optimizer(recipe),
        "per_device_train_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": accumulation_steps(recipe.global_batch, recipe.micro_batch, processes()),
        "activation_checkpointing": recipe.gradient_checkpointing,
        "bf16": compute_type(recipe) == "bfloat16",
        "use_cpu": pick_device().type == "cpu",
        "max_length": None,
        "remove_unused_columns": False,
        "accelerator_config": {"even_batches": False},  # no pair is repeated to fill a batch
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
        "disable_dropout": not (recipe.lora and recipe.lora.dropout),  # TRL's switch would reach the adapter's, too
        "save_strategy": "steps",
        "save_steps": recipe.checkpoint_every,
        "save_total_limit": 2,  # the older one stays until the newer is known to be complete
        "logging_steps": max(1, steps // LOGGED),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "report_to": "none",
    }
    if processes() > 1 and arguments["use_cpu"]:
        arguments["ddp_backend"] = "gloo"
    return arguments
