"""Hashes that name what something was made with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def config_hash(value: BaseModel | Mapping[str, Any]) -> str:
    """Sixteen hex digits that identify a resolved configuration or a part of it."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
