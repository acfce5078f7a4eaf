"""Scores of a reward model on pairs: on whole responses and, in the same forward pass, on responses cut at any ratio.

A causal model's score of a cut response is there for the asking: at the cut's last token where the end of turn is
dropped, else at the last token of a branch that closes the response at the cut and sees nothing behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from shallow_signals.config.truncation import Truncation, parse
from shallow_signals.data.sample import stratified_sample
from shallow_signals.data.truncate import nominal_range
from shallow_signals.evaluation.readings import SIDES, Layout, Progress, RewardReader, read_layout
from shallow_signals.files import InputError, read_parquet, write_parquet
from shallow_signals.models.load import Attention
from shallow_signals.models.tree import refuse_unsupported

SCORES = pa.schema(
    [
        ("pair_id", pa.string()),
        ("cluster", pa.string()),
        ("subset", pa.string()),
        ("test", pa.string()),  # full, kept, or cut05 ... cut95
        ("chosen", pa.float32()),
        ("rejected", pa.float32()),
        ("chosen_length", pa.int32()),  # kept tokens
        ("rejected_length", pa.int32()),
    ]
)
KEYS = ["pair_id", "cluster", "subset"]


@dataclass(frozen=True)
class Scoring:
    """How the models of one experiment are read: as its recipe trains them, at the study's cuts."""

    max_length: int
    end_of_turn: Literal["keep", "drop"]
    compute: Literal["auto", "float32", "bfloat16"]
    attention: Attention
    cuts: Sequence[int]  # percentages


def score_pairs(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    closing: Sequence[int],
    cuts: Sequence[int],
    max_length: int,
    token_budget: int,
    pad_id: int,
    bos_id: int | None = None,
    test: str = "full",
    kept: Mapping[str, tuple[int, int]] | None = None,
    progress: Progress | None = None,
) -> pa.Table:
    """Score pairs with any sequence-classification model; one forward pass per pair, the prompt read once.

    `rows` hold `pair_id`, `cluster`, `subset` and the token ids `prompt_ids`, `chosen_ids`, `rejected_ids` (without
    closing). `closing` is what the model was trained to see after a response, empty where the end of turn is dropped.
    `cuts` are percentages kept of each response's own tokens: floor(p / 100 x T), at least one. Every text is cut on
    the left to `max_length` tokens by itself, a leading `bos_id` surviving, as in training; a text that is cut there
    can't share what others read and costs a row of its own.

    Returns the schema `SCORES` in the order of `rows`: for each pair the whole responses under the name `test`, then
    `cut05` ... for each of `cuts` below 100 (100 is the whole response), then, for the pairs whose ids are in `kept`,
    its first so many tokens of chosen and rejected under the name `kept`. Scores don't depend on `token_budget` (rows x
    width of a batch) or on order, but for rounding. An empty response is an `InputError`.
    """
    refuse_unsupported(model)
    below = [(f"cut{cut:02d}", parse(f"head{cut}")) for cut in sorted(set(cuts)) if cut < 100]
    layout = Layout(closing, max_length, bos_id)
    prefixes = kept or {}
    lengths = []
    for index, row in enumerate(rows):
        prefix = prefixes.get(row["pair_id"], ())
        whole = [len(_response(row, side)) for side in SIDES]
        cut = [_kept_lengths(tokens, [truncation for _, truncation in below]) for tokens in whole]
        lengths.append([[*cut[s], *prefix[s : s + 1]] for s in range(len(SIDES))])
        layout.add_pair(index, row, lengths[index])
    scores = read_layout(model, layout, token_budget, pad_id, progress)

    columns: dict[str, list[Any]] = {name: [] for name in SCORES.names}
    for index, row in enumerate(rows):
        names = [test, *(name for name, _ in below), *(["kept"] if row["pair_id"] in prefixes else [])]
        for place, name in enumerate(names):
            for key in KEYS:
                columns[key].append(row[key])
            columns["test"].append(name)
            for s, side in enumerate(SIDES):
                tokens = lengths[index][s][place]
                columns[side].append(scores[index, s, tokens])
                columns[f"{side}_length"].append(tokens)
    return pa.table(columns, schema=SCORES)


def score_benchmark(model: Path, tokens: Path, rows: int | None, scoring: Scoring, output: Path) -> None:
    """Score a benchmark's pairs (a tokens file; `rows`: a fixed sample of them) and write the schema `SCORES`."""
    table = read_parquet(tokens, [*KEYS, "prompt_ids", "chosen_ids", "rejected_ids"])
    if rows is not None:
        table = stratified_sample(table, rows)
    if not table.num_rows:
        raise InputError(f"{tokens}: holds no pairs to score")
    reader = _Reader(model, scoring, _closing(tokens, scoring))
    write_parquet(output, reader.score(table.to_pylist(), scoring.cuts, "full"))


def score_heldout(model: Path, full: Path, kept: Path | None, tokens: Path, scoring: Scoring, output: Path) -> None:
    """Score the test pairs of shards and write the schema `SCORES`.

    `full` are the shards of whole responses, read at every cut, too; `kept` those of the training set's truncation,
    scored under the name `kept` (None where the training set keeps whole responses): with the whole responses where
    it keeps their beginnings, else on their own. `tokens` tells the closing.
    """
    reader = _Reader(model, scoring, _closing(tokens, scoring))
    whole = _test_rows(full)
    cut = [] if kept is None else _test_rows(kept)
    prefixes = _prefixes(whole, cut)
    parts = [reader.score(whole, scoring.cuts, "full", prefixes)]
    if others := [row for row in cut if row["pair_id"] not in prefixes]:
        parts.append(reader.score(others, [], "kept"))
    write_parquet(output, pa.concat_tables(parts))


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
    ) -> pa.Table:
        from tqdm import tqdm  # type: ignore[import-untyped]

        with tqdm(total=None, desc=f"scoring {len(rows)} pairs ({test})", unit="token", unit_scale=True) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

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
            )


def _kept_lengths(tokens: int, truncations: Sequence[Truncation]) -> list[int]:
    """Kept tokens of the whole response, then at each cut."""
    return [tokens, *(nominal_range(cut, tokens, other_tokens=None, key="")[1] for cut in truncations)]


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


def _response(row: Mapping[str, Any], side: str) -> Sequence[int]:
    response: Sequence[int] = row[f"{side}_ids"]
    if not len(response):
        raise InputError(f"pair {row['pair_id']}: {side} has no tokens to score; leave the pair out")
    return response


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
