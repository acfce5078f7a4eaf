"""From a merged dictionary to a validated study, with messages that a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from shallow_signals.config.study import Study
from shallow_signals.files import InputError


class ConfigError(InputError):
    """A configuration that can't be used; one line for each wrong key."""


def load_study(config: Mapping[str, Any]) -> Study:
    """Validate a merged configuration; raise `ConfigError` naming each key, the bad value and what is allowed.

    `sizes` maps names to overlays, and `size` picks the one that is merged over the rest.
    """
    config = sized(config)
    try:
        return Study.model_validate(dict(config))
    except ValidationError as error:
        lines = [_explain(dict(item)) for item in error.errors()]
        raise ConfigError("the configuration is wrong:\n" + "\n".join(f"  {line}" for line in lines)) from None


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Merge as the workflow engine does: dictionaries add up, everything else replaces."""
    merged = dict(base)
    for key, value in overlay.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def sized(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the overlay of its `size` merged over it (once more changes nothing)."""
    size, sizes = config.get("size"), config.get("sizes") or {}
    if size is None:
        return dict(config)
    if not isinstance(sizes, dict) or size not in sizes:
        raise ConfigError(f"size: {size!r} is not allowed; allowed: {', '.join(sizes) or 'none is defined in `sizes`'}")
    return merge(config, sizes[size] or {})


def json_schema() -> dict[str, Any]:
    """The JSON schema of the whole configuration (workflow/schemas/config.schema.json)."""
    schema = Study.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


_UNION_TAGS = {"hub", "file", "planted", "pairs", "folder", "package", "tiny", "api", "trained", "model"}


def _explain(error: dict[str, Any]) -> str:
    """One line for one of pydantic's errors."""
    path = [part for part in error["loc"] if part not in _UNION_TAGS and part != "[key]"]
    key = ".".join(map(str, path)) or "(top level)"
    if error["type"] == "extra_forbidden":
        allowed = _allowed_keys(list(error["loc"][:-1]))
        close = difflib.get_close_matches(str(path[-1]), allowed, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"{key}: unknown key; {hint}allowed: {', '.join(allowed)}"
    if error["type"] == "missing":
        return f"{key}: required key is missing"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return message if key == "(top level)" else f"{key}: {message}"
    return f"{key}: {error['input']!r} is not allowed; {error['msg'][0].lower() + error['msg'][1:]}"


def _allowed_keys(location: list[Any]) -> list[str]:
    """The keys of the model at `location`, found by walking the schema."""
    schema = json_schema()
    node: Any = schema
    for part in location:
        node = _step(schema, _resolve(schema, node), part)
        if node is None:
            return []
    return sorted(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict[str, Any], node: Any) -> Any:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    options = [option for option in node.get("anyOf", []) if option.get("type") != "null"]
    return _resolve(schema, options[0]) if options else node


def _step(schema: dict[str, Any], node: Any, part: Any) -> Any:
    """One step of a location: a property, a dictionary's value, a list's item or a union's tag."""
    if "oneOf" in node and part in node.get("discriminator", {}).get("mapping", {}):
        return {"$ref": node["discriminator"]["mapping"][part]}
    if part in node.get("properties", {}):
        return node["properties"][part]
    if isinstance(part, int):
        return node.get("items")
    extra = node.get("additionalProperties")
    if isinstance(extra, dict):
        return extra
    return next(iter(node.get("patternProperties", {}).values()), None)
