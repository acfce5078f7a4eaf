"""The runs that score test sets with reward models: from files to the files of their scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from shallow_signals.data.sample import stratified_sample
from shallow_signals.evaluation.layouts import SIDES, Layout
from shallow_signals.evaluation.readings import Reader, RewardReader, read_states, token_bar
from shallow_signals.evaluation.scores import KEYS, cuts_below, kept_lengths, lay_out, response_ids, score_pairs
from shallow_signals.files import InputError, read_parquet, write_parquet
from shallow_signals.models.load import Attention
from shallow_signals.models.tree import refuse_unsupported
from shallow_signals.models.trunk import read_trunk, write_trunk


@dataclass(frozen=True)
class Scoring:
    """How the models of one experiment are read: as its recipe trains them, at the study's cuts."""

    max_length: int
    end_of_turn: Literal["keep", "drop"]
    compute: Literal["auto", "float32", "bfloat16"]
    attention: Attention
    cuts: Sequence[int]  # percentages


def score_benchmark(
    model: Path, tokens: Path, rows: int | None, scoring: Scoring, output: Path, trunk: Path | None = None
) -> None:
    """Score a benchmark's pairs (a tokens file; `rows`: a fixed sample of them) and write the schema `SCORES`.

    `trunk`: the file that `benchmark_trunk` made of the same pairs and scoring, with a base model whose first layers
    `model` shares.
    """
    reader = _Reader(model, scoring, _closing(tokens, scoring))
    write_parquet(output, reader.score(_benchmark_rows(tokens, rows), scoring.cuts, "full", trunk=trunk))


def score_heldout(
    model: Path,
    full: Path,
    kept: Path | None,
    tokens: Path,
    scoring: Scoring,
    output: Path,
    trunk: Path | None = None,
) -> None:
    """Score the test pairs of shards and write the schema `SCORES`.

    `full` are the shards of whole responses, read at every cut, too; `kept` those of the training set's truncation,
    scored under the name `kept` (None where the training set keeps whole responses): with the whole responses where
    it keeps their beginnings, else on their own. `tokens` tells the closing. `trunk`: the file that `heldout_trunk`
    made of the same pairs and scoring, with a base model whose first layers `model` shares.
    """
    reader = _Reader(model, scoring, _closing(tokens, scoring))
    whole = _test_rows(full)
    cut = [] if kept is None else _test_rows(kept)
    prefixes = _prefixes(whole, cut)
    if trunk is not None:
        prefixes = _read_anyway(prefixes, whole, scoring.cuts)
    parts = [reader.score(whole, scoring.cuts, "full", prefixes, trunk)]
    if others := [row for row in cut if row["pair_id"] not in prefixes]:
        parts.append(reader.score(others, [], "kept"))
    write_parquet(output, pa.concat_tables(parts))


def heldout_trunk(base: Path, layers: int, full: Path, tokens: Path, scoring: Scoring, output: Path) -> None:
    """What the first `layers` layers of a base model make of the test pairs that `score_heldout` reads."""
    _write_trunk(base, layers, _test_rows(full), scoring, _closing(tokens, scoring), output)


def benchmark_trunk(base: Path, layers: int, tokens: Path, rows: int | None, scoring: Scoring, output: Path) -> None:
    """What the first `layers` layers of a base model make of the pairs that `score_benchmark` reads."""
    _write_trunk(base, layers, _benchmark_rows(tokens, rows), scoring, _closing(tokens, scoring), output)


def _write_trunk(
    base: Path,
    layers: int,
    rows: Sequence[Mapping[str, Any]],
    scoring: Scoring,
    closing: list[int],
    output: Path,
) -> None:
    reader = Reader(base, scoring.compute, scoring.attention)
    refuse_unsupported(reader.model)
    layout = Layout(closing, scoring.max_length, reader.bos_id)
    layout, _ = lay_out(rows, list(cuts_below(scoring.cuts).values()), layout, {})
    with token_bar(f"first {layers} layers of {len(rows)} pairs") as progress:
        trunk = read_states(reader.model, layout, layers, reader.token_budget, reader.pad_id, progress)
    write_trunk(output, trunk)


class _Reader(RewardReader):
    """A loaded reward model with the settings that all its test sets share."""

    def __init__(self, folder: Path, scoring: Scoring, closing: list[int]) -> None:
        super().__init__(folder, scoring.compute, scoring.attention)
        self.closing, self.max_length = closing, scoring.max_length

    def score(
        self,
        rows: Sequence[Mapping[str, Any]],
        cuts: Sequence[int],
        test: str,
        kept: Mapping[str, tuple[int, int]] | None = None,
        trunk: Path | None = None,
    ) -> pa.Table:
        with token_bar(f"scoring {len(rows)} pairs ({test})") as progress:
            return score_pairs(
                self.model,
                rows,
                closing=self.closing,
                cuts=cuts,
                max_length=self.max_length,
                token_budget=self.token_budget,
                pad_id=self.pad_id,
                bos_id=self.bos_id,
                test=test,
                kept=kept,
                progress=progress,
                trunk=None if trunk is None else read_trunk(trunk),
            )


def _read_anyway(
    prefixes: Mapping[str, tuple[int, int]], rows: Sequence[Mapping[str, Any]], cuts: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """Those of `prefixes` that end where the pair is read for its own sake: at its end or at one of `cuts`."""
    below = list(cuts_below(cuts).values())
    found = {}
    for row in rows:
        if (kept := prefixes.get(row["pair_id"])) is not None:
            read = [kept_lengths(len(response_ids(row, side)), below) for side in SIDES]
            if all(kept[s] in read[s] for s in range(len(SIDES))):
                found[row["pair_id"]] = kept
    return found


def _prefixes(whole: Sequence[Mapping[str, Any]], cut: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Of the pairs that `cut` holds as beginnings of both their `whole` responses: id to kept tokens of each."""
    known = {row["pair_id"]: row for row in whole}
    found = {}
    for row in cut:
        other = known.get(row["pair_id"])
        first, second = len(row["chosen_ids"]), len(row["rejected_ids"])
        if (
            other is not None
            and first
            and second
            and row["prompt_ids"] == other["prompt_ids"]
            and row["chosen_ids"] == other["chosen_ids"][:first]
            and row["rejected_ids"] == other["rejected_ids"][:second]
        ):
            found[row["pair_id"]] = (first, second)
    return found


def _benchmark_rows(tokens: Path, rows: int | None) -> list[dict[str, Any]]:
    """The pairs of a tokens file, or a fixed sample of them."""
    table = read_parquet(tokens, [*KEYS, "prompt_ids", "chosen_ids", "rejected_ids"])
    if rows is not None:
        table = stratified_sample(table, rows)
    if not table.num_rows:
        raise InputError(f"{tokens}: holds no pairs to score")
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def _test_rows(shards: Path) -> list[dict[str, Any]]:
    """The test pairs of a folder of shards, under the names that `score_pairs` reads."""
    files = sorted(shards.glob("test-*.parquet"))
    columns = {f"{part}_tokens": f"{part}_ids" for part in ("prompt", *SIDES)}
    tables = [read_parquet(file, [*KEYS, *columns]) for file in files]
    rows: list[dict[str, Any]] = [row for table in tables for row in table.to_pylist()]
    if not rows:
        raise InputError(f"{shards}: holds no test pairs; give the data set a test split or set `holdout`")
    return [{columns.get(name, name): value for name, value in row.items()} for row in rows]


def _closing(tokens: Path, scoring: Scoring) -> list[int]:
    """The tokens that the model was trained to see after a response."""
    if scoring.end_of_turn == "drop":
        return []
    metadata = pq.read_schema(tokens).metadata or {}
    if b"closing_ids" not in metadata:
        raise InputError(f"{tokens}: closing_ids is missing from its metadata; make the tokens again")
    closing: list[int] = json.loads(metadata[b"closing_ids"])
    return closing
