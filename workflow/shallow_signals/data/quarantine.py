"""What makes a row unusable: the reasons, the check of a pair, and the stored schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shallow_signals.data.pairs import Message, Pair

MAX_CHARACTERS = 200_000  # of a response, or of a whole prompt
RAW_CHARACTERS = 2_000  # of a raw row that the quarantine keeps
_SURROGATE = re.compile("[\ud800-\udfff]")  # a Python string holds a surrogate only where it stands alone

REASONS = {
    "malformed_json": "a line that is no JSON, or no UTF-8",
    "not_utf8": "a row of a Parquet file whose text is no UTF-8",
    "missing_field": "a field that is absent or null",
    "wrong_type": "a field (or the row itself) of another type or value than the converter reads",
    "unknown_role": "a turn of another role than system, user or assistant",
    "no_assistant_turn": "a conversation whose last turn is not the assistant's",
    "unparsable": "a text without the Human / Assistant markers of Anthropic's format",
    "prompts_differ": "chosen and rejected answer different prompts",
    "roles_do_not_alternate": "after an optional system turn, user and assistant must alternate and the user ask last",
    "empty_prompt": "no turn of the user holds text",
    "empty_chosen": "the chosen response is empty or white space",
    "empty_rejected": "the rejected response is empty or white space",
    "equal_responses": "both responses are the same text (white space at the ends aside)",
    "lone_surrogate": "half a surrogate pair: no character, and not writable as UTF-8",
    "nul_character": "a NUL character",
    "too_long": f"a prompt or response of more than {MAX_CHARACTERS:,} characters",
    "duplicate": "a pair that was read before: same prompt, chosen and rejected; the first is kept",
}
FILTERS = {
    "keep_where": "the row's boolean column is not true",
    "tie": "both responses have the same score",
    "not_rated": "a response without a rating ('N/A')",
    "score_ratio": "the score ratio is not above the configured one",
    "pairs_per_post": "the post has as many pairs as are kept",
}

QUARANTINE = pa.schema(
    [
        ("row_number", pa.int64()),  # from 1; the line number in a JSONL file
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("raw", pa.string()),  # the row as ASCII JSON, cut
    ]
)


@dataclass(frozen=True)
class Rejected:
    """A row (or one of a row's pairs) that can't be used."""

    reason: str  # a key of REASONS
    detail: str = ""


@dataclass(frozen=True)
class Filtered:
    """A sound row (or one of a row's pairs) that the data set's rules leave out."""

    reason: str  # a key of FILTERS


Outcome = Pair | Rejected | Filtered


class Unusable(Exception):
    """Raised within a converter; `convert` turns it into a `Rejected`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.rejected = Rejected(reason, detail)


def shown(value: object, limit: int = 80) -> str:
    """Any value as a short line of printable ASCII, for details and messages."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def raw_json(row: object) -> str:
    """A raw row as ASCII JSON (so NUL and lone surrogates are escapes), cut to `RAW_CHARACTERS`."""
    try:
        text = json.dumps(row, ensure_ascii=True, default=ascii)
    except (TypeError, ValueError, RecursionError):  # keys that are no strings, or nested too deep
        text = ascii(row)
    return text[:RAW_CHARACTERS]


def check(pair: Pair) -> Rejected | None:
    """Why a converted pair can't be used, or None. Every reason here holds for all sources alike."""
    return _check_texts(pair) or _check_prompt(pair["prompt"]) or _check_responses(pair["chosen"], pair["rejected"])


def _check_texts(pair: Pair) -> Rejected | None:
    """Characters that can't be stored, in any text of the pair."""
    texts: dict[str, str] = {"chosen": pair["chosen"], "rejected": pair["rejected"]}
    texts |= {f"prompt turn {number}": turn["content"] for number, turn in enumerate(pair["prompt"], 1)}
    fields: Mapping[str, Any] = pair
    texts |= {name: fields[name] for name in ("cluster", "subset", "aspect", "generator") if fields.get(name)}
    for name, text in texts.items():
        if "\0" in text:
            return Rejected("nul_character", name)
        if not text.isascii() and _SURROGATE.search(text):
            return Rejected("lone_surrogate", name)
    return None


def _check_prompt(prompt: list[Message]) -> Rejected | None:
    roles = [turn["role"] for turn in prompt]
    if not any(turn["role"] == "user" and turn["content"].strip() for turn in prompt):
        return Rejected("empty_prompt")
    turns = roles[1:] if roles[0] == "system" else roles
    if len(turns) % 2 == 0 or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(turns)):
        return Rejected("roles_do_not_alternate", " ".join(roles)[:200])
    characters = sum(len(turn["content"]) for turn in prompt)
    if characters > MAX_CHARACTERS:
        return Rejected("too_long", f"prompt of {characters} characters")
    return None


def _check_responses(chosen: str, rejected: str) -> Rejected | None:
    if not chosen.strip():
        return Rejected("empty_chosen")
    if not rejected.strip():
        return Rejected("empty_rejected")
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if len(text) > MAX_CHARACTERS:
            return Rejected("too_long", f"{name} of {len(text)} characters")
    if chosen.strip() == rejected.strip():
        return Rejected("equal_responses")
    return None
