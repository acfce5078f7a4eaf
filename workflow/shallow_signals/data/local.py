"""Rows of a local file: JSONL (plain or .gz) and Parquet, streamed."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from shallow_signals.data.fields import require_columns
from shallow_signals.data.quarantine import RAW_CHARACTERS, Rejected, shown
from shallow_signals.files import InputError

BATCH = 1_000  # rows held at a time
FORMATS = (".jsonl", ".jsonl.gz", ".parquet")


class Reading(NamedTuple):
    """One row as it stands in the source."""

    number: int  # from 1; the line number in a JSONL file
    row: object
    problem: Rejected | None = None  # set where the row couldn't be read


def resolve(path: str, data_root: Path | None) -> Path:
    """The file that a configured path names: absolute, else below `data_root`, else below the working directory.

    Raises `InputError` where there is none, or where it is no file of a readable format.
    """
    places = [Path(path)]
    if data_root is not None and not places[0].is_absolute():
        places.insert(0, data_root / path)
    found = next((place for place in places if place.exists()), None)
    if found is None:
        tried = ", ".join(str(place.absolute()) for place in places)
        raise InputError(f"{path}: no such file (looked for {tried}); check the key 'path' and 'data_root'")
    if not found.is_file():
        raise InputError(f"{found}: a folder, not a file; name one {' or '.join(FORMATS)} file in the key 'path'")
    if not found.name.endswith(FORMATS):
        raise InputError(f"{found}: of unknown format; the key 'path' takes {', '.join(FORMATS)}")
    if found.stat().st_size == 0:
        raise InputError(f"{found}: the file is empty")
    return found


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_rows(path: Path, needed: Sequence[str]) -> Iterator[Reading]:
    """Stream the rows of a file that `resolve` found; `needed` are the columns that the mapping names.

    A line that is no JSON comes with its problem. An unreadable file, one without rows and a column that no row has are
    `InputError`s; in JSONL the last is known at the end only.
    """
    rows = _parquet_rows(path, needed) if path.name.endswith(".parquet") else _json_rows(path, needed)
    try:
        first = next(rows, None)
        if first is None:
            raise InputError(f"{path}: the file holds no rows")
        yield first
        yield from rows
    except (EOFError, OSError, zlib.error, pa.ArrowException) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: damaged or cut off ({message}); fetch or write the file again") from error


def _json_rows(path: Path, needed: Sequence[str]) -> Iterator[Reading]:
    present: set[str] = set()
    with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that some editors write
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:  # also a number of thousands of digits
                yield Reading(number, repr(line[:RAW_CHARACTERS]), Rejected("malformed_json", _where(number, error)))
                continue
            if isinstance(row, dict):
                present.update(row)
            yield Reading(number, row)
    if present:
        require_columns(needed, sorted(present), f"{path}: the column mapping")


def _where(number: int, error: Exception) -> str:
    return f"line {number}: {shown(str(error))[1:-1]}"


def _parquet_rows(path: Path, needed: Sequence[str]) -> Iterator[Reading]:
    with pq.ParquetFile(path) as file:
        require_columns(needed, file.schema_arrow.names, f"{path}: the column mapping")
        number = 0
        for batch in file.iter_batches(batch_size=BATCH, columns=list(dict.fromkeys(needed))):
            yield from _batch_rows(batch, number)
            number += batch.num_rows


def _batch_rows(batch: pa.RecordBatch, before: int) -> Iterator[Reading]:
    """The rows of one batch; `before` rows came earlier."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:  # Parquet's strings are not checked when written: find the rows that are no UTF-8
        for offset in range(batch.num_rows):
            single = batch.slice(offset, 1)
            try:
                yield Reading(before + offset + 1, single.to_pylist()[0])
            except UnicodeDecodeError as error:
                yield Reading(before + offset + 1, None, Rejected("not_utf8", shown(str(error))[1:-1]))
        return
    for offset, row in enumerate(rows):
        yield Reading(before + offset + 1, row)
