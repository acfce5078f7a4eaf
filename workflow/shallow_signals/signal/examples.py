"""Example pairs for Figure 1, chosen by rule: where most of the signal comes early, and where most of it comes late."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shallow_signals.files import InputError, read_parquet
from shallow_signals.signal.implicit import LogRatios, PairRatios, kept_tokens
from shallow_signals.signal.token_lines import CUT, LINES, WIDTH, fits, token_texts

COLUMNS = ["kind", "pair_id", "side", "position", "token", "log_ratio", "kept", "early_share", "median", "fitting"]
SHORTEST = 20  # tokens: of shorter responses a half is a word or two
_SIDES = ("chosen", "rejected")


def margins(pair: PairRatios) -> tuple[float, float]:
    """The log-ratio of chosen minus that of rejected, before the cut of each and after it, in nats."""
    parts = []
    for response in (pair.chosen, pair.rejected):
        cut = kept_tokens(len(response), CUT)
        tokens = response.tokens.astype(np.float64)
        parts.append((tokens[:cut].sum(), tokens[cut:].sum()))
    (chosen, rejected) = parts
    return float(chosen[0] - rejected[0]), float(chosen[1] - rejected[1])


def early_share(pair: PairRatios) -> float:
    """|margin before the cut| / (|margin before| + |margin after|): 1 if the first parts decide, 0 if the rest."""
    before, after = map(abs, margins(pair))
    return before / (before + after) if before + after else CUT / 100


def choose(pairs: Sequence[PairRatios]) -> dict[str, PairRatios]:
    """The pairs with the largest ("early") and the smallest ("late") share of the signal before the cut.

    Among those that the policy gets right by at least the median margin of the pairs that it gets right: others have
    little signal to place. Equal shares are told apart by `pair_id`. A single candidate is "early".
    """
    totals = [sum(margins(pair)) for pair in pairs]
    right = [total for total in totals if total > 0]
    if not right:
        return {}
    clear = [pair for pair, total in zip(pairs, totals, strict=True) if total >= np.median(right)]
    ranked = sorted(clear, key=lambda pair: (-early_share(pair), pair.pair_id))
    return {"early": ranked[0], "late": ranked[-1]} if len(ranked) > 1 else {"early": ranked[0]}


def example_rows(pairs: Sequence[PairRatios], tokens: Path, prompts: Path) -> Iterator[dict[str, Any]]:
    """One dictionary (keys `COLUMNS`) per token of the chosen examples, and one, of side "prompt", with the question.

    Considered are the pairs whose responses both have `SHORTEST` tokens and fit in `LINES` lines of `WIDTH` characters:
    `fitting` counts them, `median` is their median of `early_share`. `tokens` and `prompts` are the data set's tokens
    and pairs. Raises `InputError` where no pair is right and fits.
    """
    texts = _fitting_texts(tokens, [pair.pair_id for pair in pairs])
    fitting = [pair for pair in pairs if pair.pair_id in texts]
    chosen = choose(fitting)
    if not chosen:
        raise InputError(
            f"{tokens}: no pair that the policy gets right has two responses of at least {SHORTEST} tokens that fit in "
            f"{LINES} lines of {WIDTH} characters; leave this implicit reward out of figures.figure1"
        )
    median = float(np.median([early_share(pair) for pair in fitting]))
    questions = _questions(prompts, [pair.pair_id for pair in chosen.values()])
    for kind, pair in chosen.items():
        facts = {"kind": kind, "pair_id": pair.pair_id, "early_share": early_share(pair), "median": median}
        facts["fitting"] = len(fitting)
        yield {**facts, "side": "prompt", "position": 0, "token": questions[pair.pair_id]}
        for side, response in zip(_SIDES, (pair.chosen, pair.rejected), strict=True):
            yield from ({**facts, **row} for row in _token_rows(side, texts[pair.pair_id][side], response))


def _token_rows(side: str, tokens: Sequence[str], response: LogRatios) -> Iterator[dict[str, Any]]:
    kept = kept_tokens(len(response), CUT)
    for at, (token, ratio) in enumerate(zip(tokens, response.tokens.tolist(), strict=True), start=1):
        yield {"side": side, "position": at, "token": token, "log_ratio": ratio, "kept": at <= kept}


def _fitting_texts(tokens: Path, keys: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Token texts by side of the pairs that are long enough and have room."""
    names = [f"{side}{what}" for side in _SIDES for what in ("", "_starts", "_ends")]
    found = {}
    for batch in _rows(tokens, names, keys).to_batches(1000):
        for row in batch.to_pylist():
            if all(len(row[s]) <= LINES * WIDTH and len(row[f"{s}_starts"]) >= SHORTEST for s in _SIDES):
                texts = {s: token_texts(row[s], row[f"{s}_starts"], row[f"{s}_ends"]) for s in _SIDES}
                if all(map(fits, texts.values())):
                    found[row["pair_id"]] = texts
    return found


def _questions(pairs: Path, keys: Sequence[str]) -> dict[str, str]:
    """The last turn of each prompt."""
    rows = _rows(pairs, ["prompt"], keys).to_pylist()
    return {row["pair_id"]: row["prompt"][-1]["content"] for row in rows}


def _rows(path: Path, columns: list[str], keys: Sequence[str]) -> pa.Table:
    table = read_parquet(path, ["pair_id", *columns])
    found = table.filter(pc.is_in(table["pair_id"], pa.array(keys, pa.string())))
    if missing := set(keys).difference(found["pair_id"].to_pylist()):
        raise InputError(f"{path}: lacks {len(missing)} scored pairs, {min(missing)} first; make it again")
    return found
