"""Scores of a reward model on pairs: on whole responses and, in the same forward pass, on responses cut at any ratio.

A causal model's score of a cut response is there for the asking: at the cut's last token where the end of turn is
dropped, else at the last token of a branch that closes the response at the cut and sees nothing behind it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from shallow_signals.config.truncation import Truncation, parse
from shallow_signals.data.truncate import nominal_range
from shallow_signals.evaluation.rewardbench import rewardbench_rows
from shallow_signals.files import InputError, read_parquet, write_parquet
from shallow_signals.models.heads import read_scores, score_head, token_scores
from shallow_signals.models.load import (
    Attention,
    load_reward_model,
    load_tokenizer,
    pick_compute_dtype,
    pick_device,
)
from shallow_signals.models.templates import read_template
from shallow_signals.models.tree import Row, Segment, batch_rows, refuse_unsupported, row_length

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
SIDES = ("chosen", "rejected")
TOKEN_BUDGET = {"cuda": 32768, "cpu": 4096}  # of a batch, padding included
KEYS = ["pair_id", "cluster", "subset"]

Progress = Callable[[int, int], None]  # tokens read so far, tokens in all


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
    progress: Progress | None = None,
) -> pa.Table:
    """Score pairs with any sequence-classification model; one forward pass per pair, the prompt read once.

    `rows` hold `pair_id`, `cluster`, `subset` and the token ids `prompt_ids`, `chosen_ids`, `rejected_ids` (without
    closing). `closing` is what the model was trained to see after a response, empty where the end of turn is dropped.
    `cuts` are percentages kept of each response's own tokens: floor(p / 100 x T), at least one. Every text is cut on
    the left to `max_length` tokens by itself, a leading `bos_id` surviving, as in training; a text that is cut there
    can't share what others read and costs a row of its own.

    Returns the schema `SCORES` in the order of `rows`: for each pair the whole responses under the name `test`, then
    `cut05` ... for each of `cuts` below 100 (100 is the whole response). Scores don't depend on `token_budget` (rows x
    width of a batch) or on order, but for rounding. An empty response is an `InputError`.
    """
    refuse_unsupported(model)
    below = [(f"cut{cut:02d}", parse(f"head{cut}")) for cut in sorted(set(cuts)) if cut < 100]
    layout = _Layout(closing, max_length, bos_id)
    lengths = [
        [_kept_lengths(len(_response(row, side)), [truncation for _, truncation in below]) for side in SIDES]
        for row in rows
    ]
    for index, row in enumerate(rows):
        layout.add_pair(index, row, lengths[index])
    scores = _run(model, layout, token_budget, pad_id, progress)

    columns: dict[str, list[Any]] = {name: [] for name in SCORES.names}
    for index, row in enumerate(rows):
        for place, name in enumerate([test, *(name for name, _ in below)]):
            for key in KEYS:
                columns[key].append(row[key])
            columns["test"].append(name)
            for s, side in enumerate(SIDES):
                kept = lengths[index][s][place]
                columns[side].append(scores[index, s, kept])
                columns[f"{side}_length"].append(kept)
    return pa.table(columns, schema=SCORES)


def score_benchmark(model: Path, tokens: Path, rows: int | None, scoring: Scoring, output: Path) -> None:
    """Score a benchmark's pairs (a tokens file; `rows`: a fixed sample of them) and write the schema `SCORES`."""
    table = read_parquet(tokens, [*KEYS, "prompt_ids", "chosen_ids", "rejected_ids"])
    if rows is not None:
        table = rewardbench_rows(table, rows)
    if not table.num_rows:
        raise InputError(f"{tokens}: holds no pairs to score")
    reader = _Reader(model, scoring, _closing(tokens, scoring))
    write_parquet(output, reader.score(table.to_pylist(), scoring.cuts, "full"))


def score_heldout(model: Path, full: Path, kept: Path | None, tokens: Path, scoring: Scoring, output: Path) -> None:
    """Score the test pairs of shards and write the schema `SCORES`.

    `full` are the shards of whole responses, read at every cut, too; `kept` those of the training set's truncation,
    scored under the name `kept` (None where the training set keeps whole responses). `tokens` tells the closing.
    """
    reader = _Reader(model, scoring, _closing(tokens, scoring))
    parts = [reader.score(_test_rows(full), scoring.cuts, "full")]
    if kept is not None:
        parts.append(reader.score(_test_rows(kept), [], "kept"))
    write_parquet(output, pa.concat_tables(parts))


class _Reader:
    """A loaded reward model with the settings that all its test sets share."""

    def __init__(self, folder: Path, scoring: Scoring, closing: list[int]) -> None:
        device = pick_device()
        tokenizer = load_tokenizer(folder)
        bos_ids = read_template(tokenizer, "auto").bos_ids
        self.bos_id = bos_ids[0] if bos_ids else None  # as in training: a token that opens every turn is no BOS
        self.pad_id = tokenizer.pad_token_id or 0
        self.closing, self.max_length = closing, scoring.max_length
        self.token_budget = TOKEN_BUDGET[device.type]
        # FlashAttention takes no mask in which texts branch; the kernels give the same scores but for rounding.
        attention: Attention = "eager" if scoring.attention == "eager" else "sdpa"
        self.model = load_reward_model(folder, pick_compute_dtype(scoring.compute, device), attention, device)
        # The head stays in float32: scores rounded to bfloat16 tie, and a tie counts as wrong.
        head = score_head(self.model).float()
        head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))

    def score(self, rows: Sequence[Mapping[str, Any]], cuts: Sequence[int], test: str) -> pa.Table:
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
                progress=progress,
            )


@dataclass(frozen=True)
class _Reading:
    """Where a score is read: token `offset` of segment `segment` of a row."""

    pair: int
    side: int
    kept: int  # tokens of the response
    segment: int
    offset: int


@dataclass
class _Layout:
    """Rows of segments for the model to read, and where the scores stand in them."""

    closing: Sequence[int]
    max_length: int
    bos_id: int | None
    rows: list[Row] = field(default_factory=list)
    readings: list[list[_Reading]] = field(default_factory=list)  # of each row

    def add_pair(self, pair: int, row: Mapping[str, Any], lengths: Sequence[Sequence[int]]) -> None:
        """Lay out one pair, to be read after each of `lengths` [side] tokens of its responses."""
        prompt = row["prompt_ids"]
        room = self.max_length - len(prompt) - len(self.closing)
        segments: list[Segment] = [Segment(prompt)]
        readings: list[_Reading] = []
        for side, name in enumerate(SIDES):
            response = row[f"{name}_ids"]
            # A text that does not fit loses tokens on the left, so that all that follows is read differently.
            for kept in sorted({kept for kept in lengths[side] if kept > room}):
                text = self._cut_left([*prompt, *response[:kept], *self.closing])
                self.rows.append([Segment(text)])
                self.readings.append([_Reading(pair, side, kept, 0, len(text) - 1)])
            if fitting := sorted({kept for kept in lengths[side] if kept <= room}):
                self._add_response(segments, readings, pair, side, response, fitting)
        if readings:
            self.rows.append(segments)
            self.readings.append(readings)

    def _add_response(
        self,
        segments: list[Segment],
        readings: list[_Reading],
        pair: int,
        side: int,
        response: Sequence[int],
        lengths: Sequence[int],
    ) -> None:
        """Append a response, closed, as a child of the prompt, and a branch that closes it at each shorter length."""
        longest = lengths[-1]
        trunk = len(segments)
        segments.append(Segment([*response[:longest], *self.closing], parent=0))
        for kept in lengths:
            if kept == longest or not self.closing:
                readings.append(_Reading(pair, side, kept, trunk, kept + len(self.closing) - 1))
            else:
                readings.append(_Reading(pair, side, kept, len(segments), len(self.closing) - 1))
                segments.append(Segment(self.closing, parent=trunk, keep=kept))

    def _cut_left(self, text: list[int]) -> list[int]:
        head = text[:1] if self.bos_id is not None and text[0] == self.bos_id else []
        return [*head, *text[len(text) - self.max_length + len(head) :]]


def _run(
    model: Any, layout: _Layout, token_budget: int, pad_id: int, progress: Progress | None
) -> dict[tuple[int, int, int], float]:
    """The score of each (pair, side, kept tokens)."""
    widths = [row_length(row) for row in layout.rows]
    total, done = sum(widths), 0
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = pad_id  # the model's forward refuses batches without one, though nothing here reads it
    device = next(model.parameters()).device
    scores: dict[tuple[int, int, int], float] = {}
    for batch in _batches(widths, token_budget):
        tree = batch_rows([layout.rows[index] for index in batch], pad_id).to(device)
        readings = [(place, reading) for place, index in enumerate(batch) for reading in layout.readings[index]]
        places = torch.tensor([(place, tree.starts[place][r.segment] + r.offset) for place, r in readings])
        with torch.inference_mode():
            values = read_scores(token_scores(model, tree.model_inputs()), places).tolist()
        for (_, r), value in zip(readings, values, strict=True):
            scores[r.pair, r.side, r.kept] = value
        done += sum(widths[index] for index in batch)
        if progress is not None:
            progress(done, total)
    return scores


def _batches(widths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices of rows of like width, widest first (what does not fit in memory fails at once)."""
    batch: list[int] = []
    for index in sorted(range(len(widths)), key=lambda index: -widths[index]):
        if batch and (len(batch) + 1) * widths[batch[0]] > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _kept_lengths(tokens: int, truncations: Sequence[Truncation]) -> list[int]:
    """Kept tokens of the whole response, then at each cut."""
    return [tokens, *(nominal_range(cut, tokens, other_tokens=None, key="")[1] for cut in truncations)]


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
