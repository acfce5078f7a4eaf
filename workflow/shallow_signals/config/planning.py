"""Facts that a plan rests on while the data and the models themselves are not here yet."""

from __future__ import annotations

from pydantic import Field

from shallow_signals.config.base import Closed, Name


class DataSize(Closed):
    """How large a data set is, about; token counts are averages under the run's tokenizer."""

    train: int = Field(ge=0)  # pairs
    test: int = Field(default=0, ge=0)
    prompt: float = Field(gt=0)  # tokens, template included
    response: float = Field(gt=0)


class ModelShape(Closed):
    """A decoder's dimensions, as its config.json states them."""

    hidden: int = Field(ge=1)
    layers: int = Field(ge=1)
    intermediate: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    tied: bool  # one matrix is embedding and language-model head


class Planning(Closed):
    """Read by `make plan` only: a change of these re-runs nothing."""

    datasets: dict[Name, DataSize] = {}
    models: dict[Name, ModelShape] = {}
