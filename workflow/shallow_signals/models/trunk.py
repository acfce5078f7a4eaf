"""The layers that models have in common, read once for all of them.

Where an adapter leaves the first layers of a model as they were, every model trained so makes the same of a text up to
there. That is kept, token by token, and each model starts from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shallow_signals.files import InputError, replacing


@dataclass(frozen=True)
class Trunk:
    """What the first `layers` layers make of the tokens of some rows, one row after the other."""

    name: str  # of its file, for messages
    layers: int
    weights: str  # of the embeddings and these layers (`weights_below`)
    ids: Tensor  # int32 [tokens]
    states: Tensor  # [tokens, hidden size], in the type of the model's products

    def refuse_others(self, model: Any, ids: Sequence[int]) -> None:
        """Raise `InputError` unless it is what the first layers of `model` make of rows of these token ids."""
        if not torch.equal(torch.tensor(ids, dtype=torch.int32), self.ids):
            raise InputError(f"{self.name}: was made of other texts than those to score; delete it and run again")
        kind = next(model.parameters()).dtype
        if self.states.dtype != kind:
            raise InputError(f"{self.name}: holds {self.states.dtype}, the model {kind}; delete it and run again")
        if weights_below(model, self.layers) != self.weights:
            raise InputError(
                f"{self.name}: the model's first {self.layers} layers are not those that made it; where jobs run on "
                "different processors, set the recipe's `compute`"
            )


def write_trunk(path: Path, trunk: Trunk) -> None:
    """Keep a trunk in a safetensors file."""
    from safetensors.torch import save_file

    with replacing(path) as part:
        save_file(
            {"ids": trunk.ids, "states": trunk.states}, part, {"layers": str(trunk.layers), "weights": trunk.weights}
        )


def read_trunk(path: Path) -> Trunk:
    """A trunk from its file; an unreadable one is an `InputError` that names it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
            ids, states = file.get_tensor("ids"), file.get_tensor("states")
            return Trunk(str(path), int(facts["layers"]), facts["weights"], ids, states)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{path}: can't be read as a trunk ({error}); delete it and run again") from error


def weights_below(model: Any, layers: int) -> str:
    """A hash of the embeddings and the first `layers` layers, in the type that the model has them in."""
    digest = hashlib.sha256()
    for module in (model.get_input_embeddings(), *model.base_model.layers[:layers]):
        for name, weight in sorted(module.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def stopping_at(model: Any, layers: int) -> Iterator[list[Tensor]]:
    """Inside, a forward of `model.base_model` runs `layers` layers only; what they make, [rows, width, hidden size], is
    appended to the list."""
    decoder, made = model.base_model, []
    whole = decoder.layers
    decoder.layers = whole[:layers]
    hook = whole[layers - 1].register_forward_hook(lambda _module, _inputs, output: made.append(output))
    try:
        yield made
    finally:
        hook.remove()
        decoder.layers = whole


@contextmanager
def starting_from(model: Any, layers: int) -> Iterator[Given]:
    """Inside, the first `layers` layers of `model` do not run: what they would make is what `Given.states` holds."""
    decoder, given = model.base_model, Given()
    whole = decoder.layers
    decoder.layers = nn.ModuleList([*(Given() for _ in range(layers - 1)), given, *whole[layers:]])
    try:
        yield given
    finally:
        decoder.layers = whole


class Given(nn.Module):
    """Stands in for a layer: passes on what it gets or, where they are set, `states` [rows, width, hidden size]."""

    states: Tensor | None = None

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """What the layer in its place would have made."""
        return hidden_states if self.states is None else self.states.to(hidden_states.device)
