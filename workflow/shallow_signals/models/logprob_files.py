"""Files of token log-probabilities, and the resumable groups in which long scoring runs are made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shallow_signals.files import InputError, read_parquet, write_parquet
from shallow_signals.models.records import Ints, ResponseLogprobs

GROUP = 512  # pairs whose results are written together
KEYS = ["pair_id", "cluster", "subset"]
READ = ["prompt_ids", "chosen_ids", "rejected_ids"]

_IDS = pa.list_(pa.int32())
_FLOATS = pa.list_(pa.float32())
LOGPROBS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("cluster", pa.string()),
        ("subset", pa.string()),
        ("prompt_ids", _IDS),  # the tokens that were read, cut to the run's length
        ("chosen_ids", _IDS),
        ("rejected_ids", _IDS),
        ("chosen_logps", _FLOATS),  # log p(y_t | x, y_<t) of every token
        ("rejected_logps", _FLOATS),
        ("chosen_closing_at", _IDS),  # numbers of tokens after which the closing was read
        ("chosen_closing", _FLOATS),  # its log-probability there, summed over its tokens
        ("rejected_closing_at", _IDS),
        ("rejected_closing", _FLOATS),
    ]
)


@dataclass(frozen=True)
class ReadResponse:
    """One response as it was scored."""

    ids: Ints
    logprobs: ResponseLogprobs

    def prefix(self, kept: NDArray[np.int32], closing: bool) -> float | None:
        """log p of the response cut to the tokens `kept` (and closed there), [] in nats.

        None where `kept` is not how the response begins, or the closing was not read at that length.
        """
        length = len(kept)
        if not np.array_equal(self.ids[:length], kept):
            return None
        total = float(self.logprobs.tokens[:length].sum(dtype=np.float64))
        if not closing:
            return total
        index = int(np.searchsorted(self.logprobs.closing_at, length))
        if index == len(self.logprobs.closing_at) or self.logprobs.closing_at[index] != length:
            return None
        return total + float(self.logprobs.closing[index])


@dataclass(frozen=True)
class ReadPair:
    """One pair as it was scored: both responses after the same prompt."""

    prompt: Ints
    chosen: ReadResponse
    rejected: ReadResponse


def read_logprobs(path: Path) -> dict[str, tuple[ResponseLogprobs, ResponseLogprobs]]:
    """The chosen and the rejected response's log-probabilities by `pair_id`."""
    return {key: (pair.chosen.logprobs, pair.rejected.logprobs) for key, pair in read_pairs_logprobs(path)}


def read_pairs_logprobs(path: Path) -> Iterator[tuple[str, ReadPair]]:
    """The pairs of a file of the schema `LOGPROBS` with the tokens that were read."""
    names = [name for name in LOGPROBS.names if name not in KEYS]
    for batch in read_parquet(path, ["pair_id", *names]).to_batches():
        columns = {name: _arrays(batch[name]) for name in names}
        for row, key in enumerate(batch["pair_id"].to_pylist()):
            chosen, rejected = (
                ReadResponse(
                    columns[f"{side}_ids"][row],
                    ResponseLogprobs(
                        columns[f"{side}_logps"][row],
                        columns[f"{side}_closing_at"][row],
                        columns[f"{side}_closing"][row],
                    ),
                )
                for side in ("chosen", "rejected")
            )
            yield key, ReadPair(columns["prompt_ids"][row], chosen, rejected)


def read_settings(path: Path) -> dict[str, Any]:
    """What a file of log-probabilities was made with: `closing_ids`, `cuts`, `model`, `max_length`, `compute`."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: not a readable file of log-probabilities ({str(error).splitlines()[0]})") from error
    if b"logprobs" not in metadata:
        raise InputError(f"{path}: metadata 'logprobs' is missing; score the pairs again")
    found: dict[str, Any] = json.loads(metadata[b"logprobs"])
    return found


def logprob_columns(scored: list[tuple[ResponseLogprobs, ResponseLogprobs]]) -> dict[str, pa.Array]:
    """The columns of `LOGPROBS` that a scoring run finds."""
    columns: dict[str, pa.Array] = {}
    for s, side in enumerate(("chosen", "rejected")):
        found = [pair[s] for pair in scored]
        columns[f"{side}_logps"] = pa.array([f.tokens for f in found], _FLOATS)
        columns[f"{side}_closing_at"] = pa.array([f.closing_at for f in found], _IDS)
        columns[f"{side}_closing"] = pa.array([f.closing for f in found], _FLOATS)
    return columns


def make_groups(
    folder: Path, total: int, make: Callable[[int, int], pa.Table], *, first: int = 0, step: int = 1
) -> None:
    """Write the results of rows 0 ... total - 1, `GROUP` rows a file, but for those that stand in `folder` already.

    `make(start, end)` is asked for one group at a time. A group is the same rows in the same company whenever it is
    made, so that an interrupted run ends with the same bytes. `first` and `step` deal the groups out to processes.
    """
    for number in range(first, -(-total // GROUP), step):
        path = folder / f"group-{number:05d}.parquet"
        if not path.is_file():
            write_parquet(path, make(number * GROUP, min(total, (number + 1) * GROUP)))


def read_groups(folder: Path, total: int) -> pa.Table:
    """All rows that `make_groups` wrote, in order."""
    return pa.concat_tables(
        [read_parquet(folder / f"group-{number:05d}.parquet") for number in range(-(-total // GROUP))]
    )


def _arrays(column: pa.ListArray) -> list[Any]:
    """The lists of a column as arrays that share its memory."""
    offsets = column.offsets.to_numpy()
    values = column.values.to_numpy()
    return [values[start:end] for start, end in pairwise(offsets)]
