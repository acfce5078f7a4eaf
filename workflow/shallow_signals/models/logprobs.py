"""The log-probability of every response token, and of ending the turn after it, from one forward pass.

Whatever is asked of a truncated response later is a prefix sum of these: log p(y_1..t | x) is the sum of the first t
entries (section 3.1 of the paper), and with an end of turn at the cut log p(closing | x, y_1..t) is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shallow_signals.models.heads import unwrapped
from shallow_signals.models.records import Floats, ResponseLogprobs
from shallow_signals.models.tree import Row, Segment, batch_rows, fitted_inputs, refuse_unsupported, row_length
from shallow_signals.models.vocabulary import backbone, vocabulary_logprobs


@dataclass(frozen=True)
class PairTokens:
    """One pair as token ids: the rendered prompt and the responses' own tokens, without a closing."""

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]


def cut_lengths(tokens: int, cuts: Iterable[int]) -> list[int]:
    """Token counts that percentages `cuts` keep of `tokens` tokens: floor, at least 1; ascending, unique."""
    return sorted({max(1, cut * tokens // 100) for cut in cuts} | {tokens})


def pair_row(
    pair: PairTokens, closing: Sequence[int], cuts: Iterable[int], max_length: int, bos_id: int | None = None
) -> Row:
    """Prompt -> chosen and rejected, and for a closing of several tokens a branch at every cut of each response.

    The branch holds all of the closing but its last token: a token is predicted at the one before it. The prompt is cut
    on the left where the longer response would not fit in `max_length` with its closing; a leading `bos_id` survives.
    """
    room = max_length - max(len(pair.chosen), len(pair.rejected)) - len(closing)
    prompt = _cut_left(pair.prompt, max(room, 0), bos_id)
    row = [Segment(prompt), Segment(pair.chosen, 0), Segment(pair.rejected, 0)]
    if len(closing) > 1:
        grid = list(cuts)
        for parent, response in ((1, pair.chosen), (2, pair.rejected)):
            row += [Segment(closing[:-1], parent, keep) for keep in cut_lengths(len(response), grid)]
    return row


def _cut_left(prompt: Sequence[int], room: int, bos_id: int | None) -> Sequence[int]:
    if len(prompt) <= room:
        return prompt
    head = list(prompt[:1]) if room and bos_id is not None and prompt[0] == bos_id else []
    return [*head, *prompt[len(prompt) - room + len(head) :]]


@torch.inference_mode()
def score_rows(
    model: nn.Module,
    pairs: Sequence[PairTokens],
    closing: Sequence[int],
    *,
    cuts: Sequence[int] = (),
    max_length: int,
    token_budget: int = 8192,
    pad_id: int = 0,
    bos_id: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> list[tuple[ResponseLogprobs, ResponseLogprobs]]:
    """Log-probabilities of chosen and rejected responses, in the order of `pairs`, one forward pass a pair.

    With a closing of one token it is read after every token of a response; with a longer one at the percentages `cuts`
    and at the end; with none (`closing` empty) nowhere. Rows are batched by length within `token_budget` padded tokens.
    `progress` is told how many tokens each batch held. Responses may be empty where no closing is asked for.
    """
    refuse_unsupported(unwrapped(model))
    rows = [pair_row(pair, closing, cuts, max_length, bos_id) for pair in pairs]
    found: dict[int, tuple[ResponseLogprobs, ResponseLogprobs]] = {}
    for members in length_groups([row_length(row) for row in rows], token_budget):
        chunk = [rows[i] for i in members]
        batch = batch_rows(chunk, pad_id).to(next(model.parameters()).device)
        inputs = fitted_inputs(unwrapped(model), batch.model_inputs())
        hidden = backbone(model)(**inputs, use_cache=False).last_hidden_state
        reader = _Reader(hidden, batch.starts)
        plans = [_plan(reader, r, row, closing) for r, row in enumerate(chunk)]
        logps = reader.read(model)
        for i, (chosen, rejected) in zip(members, plans, strict=True):
            found[i] = (chosen(logps), rejected(logps))
        if progress:
            progress(sum(map(row_length, chunk)))
    return [found[i] for i in range(len(pairs))]


def length_groups(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices in groups of similar length, longest first; padded, each group is within `token_budget` (or one row)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        size = max(1, token_budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


class _Reader:
    """Collects (place, target) requests of a batch, then reads them all at once."""

    def __init__(self, hidden: Tensor, starts: list[list[int]]) -> None:
        self.hidden, self.starts = hidden, starts
        self.places: list[tuple[int, int]] = []
        self.targets: list[int] = []

    def want(self, row: int, place: int, target: int) -> int:
        """Ask for log p(target) as predicted at a place; the answer's index."""
        self.places.append((row, place))
        self.targets.append(target)
        return len(self.targets) - 1

    def read(self, model: nn.Module) -> Floats:
        width, device = self.hidden.shape[1], self.hidden.device
        places = np.array([row * width + place for row, place in self.places], dtype=np.int64)
        unique, where = np.unique(places, return_inverse=True)
        order = np.argsort(where, kind="stable")
        hidden = self.hidden.flatten(0, 1)[torch.from_numpy(unique).to(device)]
        targets = torch.from_numpy(np.array(self.targets, dtype=np.int64)[order]).to(device)
        logps = vocabulary_logprobs(model, hidden, torch.from_numpy(where[order]).to(device), targets)
        answers = np.empty(len(order), dtype=np.float32)
        answers[order] = logps.cpu().numpy()
        return answers


def _plan(
    reader: _Reader, r: int, row: Row, closing: Sequence[int]
) -> tuple[Callable[[Floats], ResponseLogprobs], Callable[[Floats], ResponseLogprobs]]:
    """Ask for everything one row holds; two functions make the results out of the answers."""
    starts = reader.starts[r]
    prompt_end = starts[0] + len(row[0].ids) - 1
    plans = []
    for parent in (1, 2):
        ids, start = row[parent].ids, starts[parent]
        before = [prompt_end if t == 0 else start + t - 1 for t in range(len(ids))]
        # Nothing precedes the first token of an empty prompt: no model gives it a probability.
        wanted = [reader.want(r, p, y) if p >= 0 else -1 for p, y in zip(before, ids, strict=True)]
        ends: dict[int, list[int]] = {}
        if len(closing) == 1:
            ends = {t: [reader.want(r, start + t - 1, closing[0])] for t in range(1, len(ids) + 1)}
        for s, segment in enumerate(row[3:], start=3):
            if segment.parent == parent:
                keep = segment.keep or 0
                first = reader.want(r, start + keep - 1, closing[0])
                rest = [reader.want(r, starts[s] + j, closing[j + 1]) for j in range(len(segment.ids))]
                ends[keep] = [first, *rest]
        plans.append(_result(wanted, ends))
    return plans[0], plans[1]


def _result(wanted: list[int], ends: dict[int, list[int]]) -> Callable[[Floats], ResponseLogprobs]:
    def make(answers: Floats) -> ResponseLogprobs:
        tokens = np.array([answers[i] if i >= 0 else 0.0 for i in wanted], dtype=np.float32)
        closing = np.array([answers[indices].sum() for indices in ends.values()], dtype=np.float32)
        return ResponseLogprobs(tokens, np.array(list(ends), dtype=np.int32), closing)

    return make
