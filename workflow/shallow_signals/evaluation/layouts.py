"""Texts laid out as trees for a model to read, and the places where scores stand in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from shallow_signals.models.tree import Row, Segment, row_length

SIDES = ("chosen", "rejected")
SHARED = 8  # responses that share one reading of their prompt


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

    def token_ids(self) -> list[int]:
        """The tokens of all rows, one row after the other."""
        return [token for row in self.rows for segment in row for token in segment.ids]

    def row_starts(self) -> list[int]:
        """Where each row begins among those tokens, and where the last one ends."""
        return [0, *accumulate(row_length(row) for row in self.rows)]

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
