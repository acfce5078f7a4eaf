"""The pair: one prompt with a chosen and a rejected response, and its Parquet schema."""

from __future__ import annotations

import hashlib
import json
from typing import NotRequired, TypedDict

import pyarrow as pa


class Message(TypedDict):
    """One turn of a conversation."""

    role: str  # system, user or assistant
    content: str


class Pair(TypedDict):
    """A pair before its hashes are known; what converters make of a raw row."""

    prompt: list[Message]
    chosen: str  # the last assistant turn
    rejected: str
    cluster: NotRequired[str | None]  # unit of the bootstrap; None: the prompt
    split: NotRequired[str | None]  # train or test, where the source says so
    subset: NotRequired[str | None]
    margin: NotRequired[float | None]
    aspect: NotRequired[str | None]
    generator: NotRequired[str | None]


PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),  # hash of prompt, chosen and rejected
        ("prompt_id", pa.string()),  # hash of the prompt
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("source", pa.string()),  # repository, file or world
        ("split", pa.string()),  # train or test
        ("cluster", pa.string()),
        ("subset", pa.string()),
        ("margin", pa.float64()),
        ("aspect", pa.string()),
        ("generator", pa.string()),
    ]
)


def content_id(*parts: object) -> str:
    """Sixteen hex digits of a hash of the parts' JSON: the same texts give the same id on every machine."""
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def prompt_id(prompt: list[Message]) -> str:
    """The hash by which splits are made."""
    return content_id([[turn["role"], turn["content"]] for turn in prompt])


def pair_id(pair: Pair) -> str:
    """The hash that names a pair; chosen and rejected are not interchangeable."""
    return content_id(prompt_id(pair["prompt"]), pair["chosen"], pair["rejected"])


def uniform_hash(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts only; draws splits and subsets without an order."""
    return int(content_id(*parts)[:13], 16) / 16**13


def half_of(prompt: str) -> int:
    """1 or 2: the half of the prompts (by their `prompt_id`) that the truncations `half1` and `half2` train on."""
    return 1 if uniform_hash("half", prompt) < 0.5 else 2
