"""AlpacaEval's files: a model's outputs, and a judge's annotations of them.

An annotations frame has one row per instruction: `instruction`, `output_1` (the reference), `output_2` (the model),
`generator_1`, `generator_2`, `annotator`, `preference` (1: the reference wins, 2: the model wins, between: the judge's
probability, NaN: not judged). AlpacaEval's old files write a tie as 0; it counts as 1.5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shallow_signals.files import InputError, write_json

if TYPE_CHECKING:
    import pandas as pd

Record = Mapping[str, Any]  # one row of a model_outputs.json

FIELDS = ("instruction", "output", "generator")
COLUMNS = ["instruction", "output_1", "output_2", "generator_1", "generator_2", "annotator", "preference"]


def write_outputs(path: Path, records: Sequence[Record], reference: Sequence[Record] | None = None) -> None:
    """Write outputs in AlpacaEval's model_outputs.json format: a list of {instruction, output, generator, dataset}.

    `dataset` and further keys are kept as they are. With `reference` the instructions must be its own, in its order.
    Raises `InputError` for anything else than what `read_outputs` would accept.
    """
    _check(records, str(path))
    if reference is not None:
        check_instructions(records, reference, str(path))
    write_json(path, [dict(record) for record in records])


def read_outputs(path: Path) -> list[dict[str, Any]]:
    """The records of a model_outputs.json; raises `InputError` naming the file, the row and the field."""
    records = _read_json(path)
    _check(records, str(path))
    return [dict(record) for record in records]


def check_instructions(outputs: Sequence[Record], reference: Sequence[Record], where: str) -> None:
    """Raise `InputError` unless `outputs` answer the reference's instructions, all of them, in the same order.

    Difficulties and pairs are looked up by position, so another order would silently compare different questions.
    """
    advice = "generate over the reference's instructions, in their order"
    if len(outputs) != len(reference):
        raise InputError(f"{where}: {len(outputs)} outputs for the reference's {len(reference)} instructions; {advice}")
    for row, (ours, theirs) in enumerate(zip(outputs, reference, strict=True)):
        if ours["instruction"] != theirs["instruction"]:
            found, wanted = (repr(record["instruction"][:50]) for record in (ours, theirs))
            raise InputError(f"{where}: row {row}: instruction {found} where the reference has {wanted}; {advice}")


def write_annotations(path: Path, annotations: pd.DataFrame) -> None:
    """Write a judge's annotations as AlpacaEval does: a list of rows with `COLUMNS`, null where not judged."""
    rows = annotations[COLUMNS].astype({"preference": object})
    write_json(path, rows.where(rows.notna(), None).to_dict("records"))


def read_annotations(path: Path) -> pd.DataFrame:
    """The frame of an annotations file; raises `InputError` naming the file, the row and the column."""
    import pandas as pd

    rows = _read_json(path)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: expected a list of at least one annotation")
    for number, row in enumerate(rows):
        for column in COLUMNS:
            if not isinstance(row, dict) or column not in row:
                raise InputError(f"{path}: row {number}: '{column}' is missing")
    return pd.DataFrame(rows, columns=COLUMNS).astype({"preference": float})


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({str(error).splitlines()[0]})") from error


def _check(records: Any, where: str) -> None:
    """Raise `InputError` unless `records` are a non-empty list of outputs by one generator."""
    if not isinstance(records, Sequence) or isinstance(records, str) or not records:
        raise InputError(f"{where}: expected a list of at least one output, as AlpacaEval's model_outputs.json holds")
    for row, record in enumerate(records):
        for field in FIELDS:
            if not isinstance(record, Mapping) or not isinstance(record.get(field), str):
                raise InputError(f"{where}: row {row}: '{field}' must be a string")
    generators = sorted({record["generator"] for record in records})
    if len(generators) > 1:
        raise InputError(f"{where}: outputs of {len(generators)} generators ({', '.join(generators[:3])}); keep one")
