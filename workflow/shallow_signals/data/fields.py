"""Typed reading of a raw row's fields; what is absent or of another type becomes a reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shallow_signals.data.pairs import Message
from shallow_signals.data.quarantine import Unusable, shown
from shallow_signals.files import InputError

Row = dict[str, Any]

_ROLES = ("system", "user", "assistant")


def require_columns(needed: Sequence[str], present: Sequence[str], who: str) -> None:
    """Raise `InputError` for the first of the needed columns that is not there."""
    for name in needed:
        if name not in present:
            there = ", ".join(sorted(shown(column) for column in present)) or "none"
            raise InputError(f"{who} needs the column '{name}'; the data has: {there}")


def required(row: Row, name: str) -> Any:
    """The value of a field that must be there; null counts as absent."""
    value = row.get(name)
    if value is None:
        raise Unusable("missing_field", shown(name))
    return value


def text(row: Row, name: str) -> str:
    """A field that must be a string."""
    value = required(row, name)
    if not isinstance(value, str):
        raise Unusable("wrong_type", f"{shown(name)} must be a string, not {type(value).__name__}")
    return value


def text_or_none(row: Row, name: str | None) -> str | None:
    """A named label (a string or a whole number, as text), or None where no column is named or the row has null."""
    value = None if name is None else row.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 64:
        return str(value)
    raise Unusable("wrong_type", f"{shown(name)} must be a string or a whole number, not {shown(value)}")


def number(row: Row, name: str) -> float | None:
    """A finite number, or None where the field is absent, null or NaN (which is how tables store null)."""
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number beyond the floats
        pass
    raise Unusable("wrong_type", f"{shown(name)} must be a finite number, not {shown(value)}")


def as_split(row: Row, name: str | None) -> str | None:
    """`train` or `test`, or None where no column is named or the row has null."""
    value = None if name is None else row.get(name)
    if value in (None, "train", "test"):
        return value
    raise Unusable("wrong_type", f"{shown(name)} must be 'train' or 'test', not {shown(value)}")


def messages(row: Row, name: str) -> list[Message]:
    """A list of {role, content}; other keys of a turn are dropped."""
    value = required(row, name)
    if not isinstance(value, list):
        raise Unusable("wrong_type", f"{shown(name)} must be a message list, not {type(value).__name__}")
    return [_message(turn, name) for turn in value]


def _message(turn: object, name: str) -> Message:
    if not isinstance(turn, dict):
        raise Unusable("wrong_type", f"a turn of {shown(name)} must be an object, not {type(turn).__name__}")
    for key in ("role", "content"):
        if turn.get(key) is None:
            raise Unusable("missing_field", f"'{key}' of a turn of {shown(name)}")
        if not isinstance(turn[key], str):
            raise Unusable("wrong_type", f"'{key}' of a turn of {shown(name)} must be a string")
    if turn["role"] not in _ROLES:
        raise Unusable("unknown_role", f"{shown(turn['role'])} in {shown(name)}")
    return Message(role=turn["role"], content=turn["content"])
