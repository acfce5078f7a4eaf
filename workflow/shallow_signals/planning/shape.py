"""FLOPs and parameters of a decoder by its dimensions.

Products only (2 FLOPs a multiply-add), as every public count of model FLOPs has it; norms, rotations and softmax are
left out. Attention counts the whole square of a row: a mask of four dimensions leaves no causal saving.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shallow_signals.config.planning import ModelShape
from shallow_signals.config.recipes import Recipe
from shallow_signals.config.sources import TinyModel
from shallow_signals.files import InputError

Counts = NDArray[np.float64]


def body_parameters(shape: ModelShape) -> int:
    """Weights of all layers' matrices."""
    attention = 2 * shape.hidden * shape.head_dim * (shape.heads + shape.kv_heads)
    return shape.layers * (attention + 3 * shape.hidden * shape.intermediate)


def parameters(shape: ModelShape, *, reward_model: bool = False) -> int:
    """All weights, norms included; a reward model has a head of one output in place of the language model's."""
    embedding = shape.vocabulary * shape.hidden
    norms = (2 * shape.layers + 1) * shape.hidden
    head = shape.hidden if reward_model else 0 if shape.tied else embedding
    return body_parameters(shape) + embedding + norms + head


def body_flops(shape: ModelShape, widths: Counts) -> float:
    """One forward pass of the layers over rows of `widths` tokens."""
    square = 4.0 * shape.layers * shape.heads * shape.head_dim
    return float(2.0 * body_parameters(shape) * widths.sum() + square * (widths**2).sum())


def passes_of(recipe: Recipe, layers: int) -> float:
    """A training step in forward passes: a backward one has twice the products, over frozen weights as many."""
    return 1.0 + (2.0 if recipe.lora is None else 1.0) * recipe.backward_share(layers)


def vocabulary_flops(shape: ModelShape, places: float) -> float:
    """The language-model head at that many positions."""
    return 2.0 * shape.hidden * shape.vocabulary * places


def lora_parameters(shape: ModelShape, rank: int) -> int:
    """Of an adapter on all linear layers."""
    h, q, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sides = 2 * (h + q) + 2 * (h + kv) + 3 * (h + shape.intermediate)
    return shape.layers * rank * sides


def read_shape(folder: Path) -> ModelShape:
    """Of a checkpoint, from its config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        heads = config["num_attention_heads"]
        return ModelShape(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            intermediate=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", True),
        )
    except KeyError as error:
        raise InputError(
            f"{folder}/config.json: {error} is missing; give the model's shape under `planning`"
        ) from error


def tiny_shape(source: TinyModel) -> ModelShape:
    """Of the model that `models.tiny` trains."""
    return ModelShape(
        hidden=source.hidden,
        layers=source.layers,
        intermediate=2 * source.hidden,
        heads=source.heads,
        kv_heads=source.heads,
        head_dim=source.hidden // source.heads,
        vocabulary=source.vocabulary,
        tied=True,
    )
