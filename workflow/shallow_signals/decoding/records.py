"""One generated response with what both models said of it, and its Parquet form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
# Per position, in this order: float32 columns, and the rank.
MEASURES = (
    "kl_policy_reference",
    "kl_sampling_reference",
    "log_ratio",
    "policy_logp",
    "reference_logp",
    "argmax_rank",
)

GENERATIONS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("strategy", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("ended", pa.bool_()),
        *((name, pa.list_(pa.int32() if name == "argmax_rank" else pa.float32())) for name in MEASURES),
    ]
)


@dataclass(frozen=True)
class Generation:
    """One response of T tokens. The measures, [T] each in nats, are None where they were not asked for."""

    prompt_id: str
    sample: int
    strategy: str
    tokens: Ints  # the one that ended the turn included
    ended: bool  # False: cut off at the limit of new tokens
    kl_policy_reference: Floats | None = None  # exact KL(policy || reference) before each token
    kl_sampling_reference: Floats | None = None  # exact KL of the distribution that was sampled from
    log_ratio: Floats | None = None  # log(sampling(y_t) / reference(y_t))
    policy_logp: Floats | None = None  # log policy(y_t)
    reference_logp: Floats | None = None  # log reference(y_t)
    argmax_rank: Ints | None = None  # rank under the reference of the policy's likeliest token; 1: the same

    @property
    def response(self) -> Ints:
        """The tokens without the one that ended the turn."""
        return self.tokens[:-1] if self.ended else self.tokens


def as_texts(tokenizer: Any, generations: Sequence[Generation]) -> list[str]:
    """Responses as text, without the token that ended them and without special tokens."""
    ids = [generation.response.tolist() for generation in generations]
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return texts


def to_table(generations: Sequence[Generation]) -> pa.Table:
    """A table of schema `GENERATIONS`, one row a response."""
    columns = {name: pa.array([getattr(g, name) for g in generations], kind) for name, kind in _FIELDS}
    return pa.table(columns, schema=GENERATIONS)


def from_table(table: pa.Table) -> list[Generation]:
    """The responses of a table of schema `GENERATIONS`."""
    dtypes = {"tokens": np.int32, "argmax_rank": np.int32}

    def value(name: str, cell: Any) -> Any:
        if name in ("tokens", *MEASURES) and cell is not None:
            return np.array(cell, dtype=dtypes.get(name, np.float32))
        return cell

    return [Generation(**{name: value(name, cell) for name, cell in row.items()}) for row in table.to_pylist()]


_FIELDS = [(field.name, field.type) for field in GENERATIONS]
