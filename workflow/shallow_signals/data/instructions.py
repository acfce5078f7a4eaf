"""Sets of prompts to generate from, with the answers that are stored beside them where there are any."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shallow_signals.config.generation import HubInstructions, InstructionColumns, Instructions
from shallow_signals.config.sources import HubSource
from shallow_signals.data import hub, local, planted
from shallow_signals.data.pairs import PAIRS, Message, content_id, uniform_hash
from shallow_signals.files import InputError, read_parquet, write_json, write_parquet

INSTRUCTIONS = pa.schema(
    [
        ("instruction_id", pa.string()),  # hash of the prompt and of how often it stood before
        ("prompt", PAIRS.field("prompt").type),
        ("instruction", pa.string()),  # the prompt as one text
        ("output", pa.string()),  # a stored answer
        ("generator", pa.string()),
    ]
)


def prepare_instructions(
    instructions: Instructions, pairs: Path | None, out: Path, data_root: Path | None, pins: Mapping[str, str]
) -> dict[str, Any]:
    """Read a source and write the schema `INSTRUCTIONS` in its order, with its counts beside it (.json); the counts.

    A sample is drawn by hash and keeps the source's order. `pairs` is the ingested data set of a source of kind
    `pairs`. Raises `InputError` where the source can't be read, a row has no instruction, or fewer rows than are asked
    for are there.
    """
    rows = list(_numbered(_read(instructions, pairs, data_root, pins)))
    kept = rows
    if instructions.rows is not None:
        if len(rows) < instructions.rows:
            raise InputError(
                f"{instructions.label}: holds {len(rows)} instructions, fewer than the {instructions.rows} of `rows`"
            )
        draws = [uniform_hash("instructions", instructions.seed, row["instruction_id"]) for row in rows]
        chosen = sorted(range(len(rows)), key=draws.__getitem__)[: instructions.rows]
        kept = [rows[index] for index in sorted(chosen)]
    write_parquet(out, pa.Table.from_pylist(kept, schema=INSTRUCTIONS))
    counts = {"read": len(rows), "kept": len(kept), "seed": instructions.seed}
    write_json(out.with_suffix(".json"), {"label": instructions.label, **counts})
    return counts


def as_text(prompt: list[Message]) -> str:
    """A prompt as one text: the user's words, or a conversation with its speakers named."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in prompt)


def _read(
    instructions: Instructions, pairs: Path | None, data_root: Path | None, pins: Mapping[str, str]
) -> Iterable[dict[str, Any]]:
    source = instructions.source
    if source.kind == "planted":
        return ({"prompt": _user(text)} for text in planted.instructions(source.seed, instructions.rows or 0))
    if source.kind == "pairs":
        if pairs is None:
            raise ValueError("a source of kind 'pairs' needs the pairs of its data set")
        return _held_out(pairs)
    if source.kind == "file":
        return _from_file(local.resolve(source.path, data_root), source.columns)
    if data_root is not None and source.offline is not None:
        return _from_file(local.resolve(source.offline.path, data_root), source.offline.columns)
    return _from_hub(source, pins)


def _held_out(pairs: Path) -> Iterator[dict[str, Any]]:
    table = read_parquet(pairs, ["prompt_id", "prompt", "split"])
    seen: set[str] = set()
    for row in table.filter(pc.equal(table["split"], "test")).to_pylist():
        if row["prompt_id"] not in seen:
            seen.add(row["prompt_id"])
            yield {"prompt": row["prompt"]}


def _from_file(path: Path, columns: InstructionColumns) -> Iterator[dict[str, Any]]:
    named = [columns.instruction, columns.input, columns.output, columns.generator]
    for reading in local.read_rows(path, [name for name in named if name]):
        if reading.problem is not None:
            raise InputError(f"{path}: row {reading.number}: {reading.problem.detail}")
        yield _mapped(reading.row, columns, f"{path}: row {reading.number}")


def _from_hub(source: HubInstructions, pins: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    revision = source.revision or pins.get(source.repo)
    if source.file is not None:
        for number, row in enumerate(_json_of_hub(source.repo, source.file, revision), 1):
            yield _mapped(row, source.columns, f"{source.repo}/{source.file}: row {number}")
        return
    as_data = HubSource(
        repo=source.repo, config_name=source.config_name, split=source.split, converter="columns", revision=revision
    )
    for reading in hub.read_rows(hub.load(as_data, source.split, revision), as_data):
        yield _mapped(reading.row, source.columns, f"{source.repo}: row {reading.number}")


def _json_of_hub(repo: str, file: str, revision: str | None) -> list[Any]:
    path = hub.download(repo, file, revision)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{repo}/{file}: not readable as JSON ({error})") from error
    if not isinstance(rows, list):
        raise InputError(f"{repo}/{file}: expected a list of instructions")
    return rows


def _mapped(row: object, columns: InstructionColumns, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{where}: not an object with columns")
    text = row.get(columns.instruction)
    if isinstance(text, list):
        prompt: list[Message] = text
        if not prompt or any(not isinstance(turn, dict) or {"role", "content"} - turn.keys() for turn in prompt):
            raise InputError(f"{where}: column '{columns.instruction}' is no list of messages with role and content")
        prompt = [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
    else:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: column '{columns.instruction}' holds no instruction")
        below = row.get(columns.input) if columns.input else None
        prompt = _user(f"{text}\n\n{below}" if below else text)
    stored = {"output": columns.output, "generator": columns.generator}
    for name in stored.values():
        if name and not isinstance(row.get(name), str):
            raise InputError(f"{where}: column '{name}' holds no text")
    return {"prompt": prompt, **{key: row.get(name) if name else None for key, name in stored.items()}}


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _numbered(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Add the hash (an instruction that stands twice gets two) and the text."""
    seen: Counter[str] = Counter()
    for row in rows:
        text = as_text(row["prompt"])
        yield {"output": None, "generator": None, **row, "instruction": text} | {
            "instruction_id": content_id([[t["role"], t["content"]] for t in row["prompt"]], seen[text])
        }
        seen[text] += 1
