"""Texts laid out as trees for a reward model to read, and the places where its scores stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from shallow_signals.models.attention import with_grouped_attention
from shallow_signals.models.heads import read_scores, score_head, token_scores
from shallow_signals.models.load import (
    Attention,
    load_reward_model,
    load_tokenizer,
    pick_compute_dtype,
    pick_device,
)
from shallow_signals.models.templates import read_template
from shallow_signals.models.tree import TOKEN_BUDGET, Row, Segment, batch_rows, row_length

SIDES = ("chosen", "rejected")
SHARED = 8  # responses that share one reading of their prompt

Progress = Callable[[int, int], None]  # tokens read so far, tokens in all


@dataclass(frozen=True)
class Reading:
    """Where a score is read: token `offset` of segment `segment` of a row."""

    pair: int
    side: int
    kept: int  # tokens of the response
    segment: int
    offset: int


@dataclass
class Layout:
    """Rows of segments for the model to read, and where the scores stand in them."""

    closing: Sequence[int]
    max_length: int
    bos_id: int | None
    rows: list[Row] = field(default_factory=list)
    readings: list[list[Reading]] = field(default_factory=list)  # of each row

    def add_pair(self, pair: int, row: Mapping[str, Any], lengths: Sequence[Sequence[int]]) -> None:
        """Lay out one pair, to be read after each of `lengths` [side] tokens of its responses."""
        prompt = row["prompt_ids"]
        room = self.max_length - len(prompt) - len(self.closing)
        segments: list[Segment] = [Segment(prompt)]
        readings: list[Reading] = []
        for side, name in enumerate(SIDES):
            response = row[f"{name}_ids"]
            # A text that does not fit loses tokens on the left, so that all that follows is read differently.
            for kept in sorted({kept for kept in lengths[side] if kept > room}):
                text = self._cut_left([*prompt, *response[:kept], *self.closing])
                self.rows.append([Segment(text)])
                self.readings.append([Reading(pair, side, kept, 0, len(text) - 1)])
            if fitting := sorted({kept for kept in lengths[side] if kept <= room}):
                self._add_response(segments, readings, pair, side, response, fitting)
        if readings:
            self.rows.append(segments)
            self.readings.append(readings)

    def add_responses(self, first: int, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> None:
        """Lay out whole responses to one prompt, numbered from `first`; an empty one is read at its closing."""
        fitting: list[int] = []
        for number, response in enumerate(responses, first):
            text = [*prompt, *response, *self.closing]
            if len(text) <= self.max_length and len(response) + len(self.closing):
                fitting.append(number)
                continue
            text = self._cut_left(text) if len(text) > self.max_length else text
            self.rows.append([Segment(text)])
            self.readings.append([Reading(number, 0, 0, 0, len(text) - 1)])
        for start in range(0, len(fitting), SHARED):
            segments, readings = [Segment(prompt)], []
            for number in fitting[start : start + SHARED]:
                text = [*responses[number - first], *self.closing]
                readings.append(Reading(number, 0, 0, len(segments), len(text) - 1))
                segments.append(Segment(text, parent=0))
            self.rows.append(segments)
            self.readings.append(readings)

    def _add_response(
        self,
        segments: list[Segment],
        readings: list[Reading],
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
                readings.append(Reading(pair, side, kept, trunk, kept + len(self.closing) - 1))
            else:
                readings.append(Reading(pair, side, kept, len(segments), len(self.closing) - 1))
                segments.append(Segment(self.closing, parent=trunk, keep=kept))

    def _cut_left(self, text: list[int]) -> list[int]:
        head = text[:1] if self.bos_id is not None and text[0] == self.bos_id else []
        return [*head, *text[len(text) - self.max_length + len(head) :]]


def read_layout(
    model: Any, layout: Layout, token_budget: int, pad_id: int, progress: Progress | None
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


class RewardReader:
    """A loaded reward model, ready to read layouts."""

    def __init__(
        self, folder: Path, compute: Literal["auto", "float32", "bfloat16"] = "auto", attention: Attention = "sdpa"
    ) -> None:
        device = pick_device()
        self.tokenizer = load_tokenizer(folder)
        bos_ids = read_template(self.tokenizer, "auto").bos_ids
        self.bos_id = bos_ids[0] if bos_ids else None  # as in training: a token that opens every turn is no BOS
        self.pad_id: int = self.tokenizer.pad_token_id or 0
        self.token_budget = TOKEN_BUDGET[device.type]
        # FlashAttention takes no mask in which texts branch; the kernels give the same scores but for rounding.
        kernel: Attention = "eager" if attention == "eager" else "sdpa"
        self.model = with_grouped_attention(
            load_reward_model(folder, pick_compute_dtype(compute, device), kernel, device)
        )
        # The head stays in float32: scores rounded to bfloat16 tie, and a tie counts as wrong.
        head = score_head(self.model).float()
        head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))
