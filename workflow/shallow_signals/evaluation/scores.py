"""Scores of a reward model on pairs: on whole responses and, in the same forward pass, on responses cut at any ratio.

A causal model's score of a cut response is there for the asking: at the cut's last token where the end of turn is
dropped, else at the last token of a branch that closes the response at the cut and sees nothing behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from shallow_signals.config.truncation import Truncation, parse
from shallow_signals.data.truncate import nominal_range
from shallow_signals.evaluation.layouts import SIDES, Layout
from shallow_signals.evaluation.readings import Progress, read_layout
from shallow_signals.files import InputError
from shallow_signals.models.tree import refuse_unsupported
from shallow_signals.models.trunk import Trunk

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
    trunk: Trunk | None = None,
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
    width of a batch), on order, or on a `trunk` of the same rows and cuts (which must be those of `kept`, too), but for
    rounding. An empty response is an `InputError`.
    """
    refuse_unsupported(model)
    below = cuts_below(cuts)
    prefixes = kept or {}
    layout, lengths = lay_out(rows, list(below.values()), Layout(closing, max_length, bos_id), prefixes)
    scores = read_layout(model, layout, token_budget, pad_id, progress, trunk)

    columns: dict[str, list[Any]] = {name: [] for name in SCORES.names}
    for index, row in enumerate(rows):
        names = [test, *below, *(["kept"] if row["pair_id"] in prefixes else [])]
        for place, name in enumerate(names):
            for key in KEYS:
                columns[key].append(row[key])
            columns["test"].append(name)
            for s, side in enumerate(SIDES):
                tokens = lengths[index][s][place]
                columns[side].append(scores[index, s, tokens])
                columns[f"{side}_length"].append(tokens)
    return pa.table(columns, schema=SCORES)


def cuts_below(cuts: Sequence[int]) -> dict[str, Truncation]:
    """The names of the cuts that keep less than everything, and what each is."""
    return {f"cut{cut:02d}": parse(f"head{cut}") for cut in sorted(set(cuts)) if cut < 100}


def lay_out(
    rows: Sequence[Mapping[str, Any]],
    below: Sequence[Truncation],
    layout: Layout,
    prefixes: Mapping[str, tuple[int, int]],
) -> tuple[Layout, list[list[list[int]]]]:
    """`layout` with all pairs in it, and the kept tokens at which each is read: [pair][side]."""
    lengths = []
    for index, row in enumerate(rows):
        prefix = prefixes.get(row["pair_id"], ())
        cut = [kept_lengths(len(response_ids(row, side)), below) for side in SIDES]
        lengths.append([[*cut[s], *prefix[s : s + 1]] for s in range(len(SIDES))])
        layout.add_pair(index, row, lengths[index])
    return layout, lengths


def kept_lengths(tokens: int, truncations: Sequence[Truncation]) -> list[int]:
    """Kept tokens of the whole response, then at each cut."""
    return [tokens, *(nominal_range(cut, tokens, other_tokens=None, key="")[1] for cut in truncations)]


def response_ids(row: Mapping[str, Any], side: str) -> Sequence[int]:
    """The tokens of one of a pair's responses; none is an `InputError`."""
    response: Sequence[int] = row[f"{side}_ids"]
    if not len(response):
        raise InputError(f"pair {row['pair_id']}: {side} has no tokens to score; leave the pair out")
    return response
