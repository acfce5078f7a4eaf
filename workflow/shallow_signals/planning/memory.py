"""Peak memory of a training on each GPU, and what to do where it does not fit (the formulas: docs/planning.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from shallow_signals.config.planning import ModelShape
from shallow_signals.config.recipes import DPORecipe, Lora, Recipe
from shallow_signals.planning.shape import body_parameters, lora_parameters, parameters

READ = 32768  # tokens of a scoring batch on a GPU
GB = 1e9
USABLE = 0.94  # of a card: the rest is CUDA's own and fragments
LIBRARIES = 0.5 * GB  # of a process that has loaded torch, transformers and TRL
CGROUP = Path("/sys/fs/cgroup")
SHARDS = (1, 2, 4, 8)  # GPUs of one node that ZeRO-3 may spread the weights over


@dataclass(frozen=True)
class Fit:
    """Where a training fits."""

    gpus: int
    bytes_per_gpu: float


def fit_training(shape: ModelShape, recipe: Recipe, width: float, card: float) -> Fit | str:
    """The fewest GPUs that hold a training, or why none do and what would.

    `width` is the longest row in tokens, `card` a GPU's memory in bytes. TRL's backend keeps a whole copy on every GPU,
    so more of them don't help; OpenRLHF shards.
    """
    choices = SHARDS if recipe.backend == "openrlhf" else (1,)
    for gpus in choices:
        need = training_bytes(shape, recipe, width, gpus)
        if need <= USABLE * card:
            return Fit(gpus, need)
    return f"needs {need / GB:.0f} GB on each of {gpus} GPU{'s' * (gpus > 1)}, a card has {card / GB:.0f}; " + _advice(
        shape, recipe, width, card
    )


def training_bytes(shape: ModelShape, recipe: Recipe, width: float, gpus: int = 1) -> float:
    """Weights, gradients, optimiser and activations of one GPU."""
    count = parameters(shape, reward_model=not isinstance(recipe, DPORecipe))
    activations = activation_bytes(shape, recipe, width)
    if recipe.backend == "openrlhf":
        # bfloat16 weights and gradients, float32 master weights and two moments; the reference's weights; the layer at
        # hand, gathered twice over.
        reference = 2 if isinstance(recipe, DPORecipe) else 0
        gathered = 4 * (body_parameters(shape) / shape.layers + shape.vocabulary * shape.hidden)
        return count * (16 + reference) / gpus + gathered + activations
    size = weight_bytes(recipe)
    if recipe.lora is not None:
        adapter = recipe.lora.share(shape.layers) * lora_parameters(shape, recipe.lora.rank)
        return count * size + 16.0 * adapter + activations
    moments = 8 if recipe.optimizer == "paged_adamw_32bit" else 2 * size
    return float(count * (2 * size + moments)) + activations


def activation_bytes(shape: ModelShape, recipe: Recipe, width: float) -> float:
    """What the backward pass keeps of a micro-batch, in bfloat16, and the vocabulary's logits in float32."""
    tokens = recipe.micro_batch * width
    layer = 2.0 * (6 * shape.hidden + 2 * (shape.heads + 2 * shape.kv_heads) * shape.head_dim + 4 * shape.intermediate)
    kept = 2.0 * shape.hidden * shape.layers + layer if recipe.gradient_checkpointing else layer * shape.layers
    kept *= recipe.backward_share(shape.layers)
    mask = recipe.micro_batch * width**2 if recipe.share_prompt else 0.0
    logits = 0.0
    if isinstance(recipe, DPORecipe):
        # OpenRLHF holds all logits in bfloat16 and float32 and their gradient; ours are made 4,096 x 32,768 at a time.
        logits = tokens * shape.vocabulary * 10.0 if recipe.backend == "openrlhf" else 2 * 4.0 * 4096 * 32768
    return tokens * kept + mask + logits


def weight_bytes(recipe: Recipe) -> int:
    """Of each weight on a GPU; those under an adapter are kept in the type of the products."""
    kept = "bfloat16" if recipe.lora and recipe.compute != "float32" else recipe.weights
    return 2 if kept == "bfloat16" else 4


def inference_bytes(shape: ModelShape, tokens: float, *, reward_model: bool = False) -> float:
    """A model in bfloat16 that reads batches of that many tokens."""
    layer = 2.0 * (4 * shape.hidden + 2 * shape.heads * shape.head_dim + 3 * shape.intermediate)
    return 2.0 * parameters(shape, reward_model=reward_model) + tokens * layer


def too_little_here(largest: float, jobs: int, free: float) -> str | None:
    """What is wrong where `jobs` processes side by side don't fit into `free` bytes of this machine, or None.

    `largest` is the memory that the largest job is planned to take, the libraries of its process left out.
    """
    need = jobs * (largest + LIBRARIES)
    if need <= free:
        return None
    each = f"{jobs} jobs side by side need" if jobs > 1 else "a job needs"
    fewer = "`cores: 1` in the profile, or " if jobs > 1 else ""
    return (
        f"{each} at least {need / GB:.1f} GB, this machine has {free / GB:.1f} GB free: {fewer}micro_batch: 1 and a "
        "shorter max_length in the recipes"
    )


def free_memory() -> float:
    """Bytes that new processes may take, inside a container those of its limit. Cached files make room, so are free."""
    free = float(psutil.virtual_memory().available)
    try:
        limit = float((CGROUP / "memory.max").read_text())
        used = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such limit
        return free
    return min(free, limit - float(used["anon"]))


def _advice(shape: ModelShape, recipe: Recipe, width: float, card: float) -> str:
    """What would fit."""
    ways = []
    if recipe.backend == "trl":
        unshared = {"sort_in_step": False, "share_prompt": False, "lora": None, "weights": "float32"}
        sharded = recipe.model_copy(update={**unshared, "backend": "openrlhf", "micro_batch": 1})
        if recipe.end_of_turn == "keep" and not isinstance(found := fit_training(shape, sharded, width, card), str):
            ways.append(
                f"shard the weights (backend: openrlhf, ZeRO-3 on {found.gpus} GPUs: {found.bytes_per_gpu / GB:.0f} GB)"
            )
        adapter = recipe.model_copy(update={"lora": recipe.lora or Lora(), "weights": "bfloat16", "micro_batch": 1})
        need = training_bytes(shape, adapter, width)
        if need <= USABLE * card:
            ways.append(
                f"train an adapter (lora: {{rank: 16}}, weights: bfloat16: {need / GB:.0f} GB); its reference is free: "
                "the same weights with the adapter off"
            )
    if recipe.micro_batch > 1 or not recipe.gradient_checkpointing:
        ways.append("micro_batch: 1 and gradient_checkpointing: true")
    return " or ".join(ways) or "take a smaller model or shorter max_length"
