"""Reference log-probabilities of DPO: read off one-pass arrays where they apply, scored once where they don't."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shallow_signals.config.hashing import config_hash
from shallow_signals.files import InputError, read_parquet
from shallow_signals.models.logprob_files import ReadPair, make_groups, read_groups, read_pairs_logprobs, read_settings
from shallow_signals.models.logprobs import length_groups
from shallow_signals.training.pairs import PairIds

Doubles = NDArray[np.float64]

_SUMS = pa.schema([("chosen", pa.float64()), ("rejected", pa.float64())])


def from_arrays(shards: Path, pairs: Iterable[PairIds], closing: Sequence[int], logprobs: Path) -> Doubles:
    """log p_ref of each training pair's chosen and rejected response (closing included), [pairs, 2] in nats.

    `pairs` are those of the shards' train files, as training reads them; `logprobs` is a file of the reference model's
    one-pass log-probabilities. NaN where its arrays do not apply: the pair is not in it, follows another prompt (one
    cut to length), does not keep the beginning of the response that was scored, or is closed where no closing was read.
    Pairs whose labels were swapped are found, too. A closing other than the file's is an `InputError`.
    """
    scored_closing = read_settings(logprobs)["closing_ids"]
    if closing and list(closing) != scored_closing:
        raise InputError(
            f"{logprobs}: read the closing {scored_closing}, training closes responses with {list(closing)}; score the "
            "pairs with the tokenizer of the base model"
        )
    known = dict(read_pairs_logprobs(logprobs))
    return np.array(
        [_of_pair(pair, closing, known.get(key)) for key, pair in zip(_pair_ids(shards), pairs, strict=True)]
    )


def score_missing(
    score: Callable[[Sequence[int]], Doubles],
    lengths: NDArray[np.int64],
    known: Doubles,
    state: Path,
    *,
    token_budget: int,
    part: tuple[int, int] = (0, 1),
    wait: Callable[[], object] = lambda: None,
) -> Doubles:
    """`known` with its NaN rows scored; finished groups of them stand in a folder of `state`.

    `score` gives the [pairs, 2] log-probabilities of a batch of pairs, by index; `lengths` are the tokens that a pair
    takes in a batch, padding not counted. Of several processes each scores its `part` (number, of how many) of the
    groups, and `wait` returns when all have done so.
    """
    missing = np.flatnonzero(np.isnan(known[:, 0]))
    if not len(missing):
        return known

    def make(start: int, end: int) -> pa.Table:
        here = missing[start:end]
        sums = np.empty((len(here), 2))
        for members in length_groups(lengths[here].tolist(), token_budget):
            sums[members] = score(here[members].tolist())
        return pa.table({name: sums[:, side] for side, name in enumerate(_SUMS.names)}, schema=_SUMS)

    folder = state / f"references-{config_hash({'rows': missing.tolist()})}"
    make_groups(folder, len(missing), make, first=part[0], step=part[1])
    wait()
    found = read_groups(folder, len(missing))
    completed = known.copy()
    completed[missing] = np.stack([found[name].to_numpy() for name in _SUMS.names], axis=1)
    return completed


def _of_pair(pair: PairIds, closing: Sequence[int], read: ReadPair | None) -> tuple[float, float]:
    nothing = (np.nan, np.nan)
    if read is None or pair.rejected_prompt is not None or not np.array_equal(read.prompt, pair.prompt):
        return nothing
    kept = [np.asarray(ids[: len(ids) - len(closing)], np.int32) for ids in (pair.chosen, pair.rejected)]
    for sides in ((read.chosen, read.rejected), (read.rejected, read.chosen)):
        found = [side.prefix(ids, bool(closing)) for side, ids in zip(sides, kept, strict=True)]
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
    return nothing


def _pair_ids(shards: Path) -> list[str]:
    """Of the train files' rows, in the order in which training reads them."""
    files = sorted(shards.glob("train-*.parquet"))
    return [key for file in files for key in read_parquet(file, ["pair_id"])["pair_id"].to_pylist()]
