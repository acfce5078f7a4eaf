"""What reading a pair at every cut costs, beside reading it once.

    OMP_NUM_THREADS=1 python benchmarks/one_pass.py hh_rlhf_harmless_test.jsonl.gz

Both sides read the same pairs under the same model in one pass a pair, prompt shared, batched by length. The side that
is called `once` reads whole responses and nothing else; the other one also gives what every cut needs:

* log-probabilities, left open: 100 cuts are prefix sums of what `once` reads anyhow;
* log-probabilities, a closing of one token: read after every token of a response, from the same logits;
* log-probabilities, a closing of two tokens: a branch at every cut of the grid;
* reward model, left open: the score at each of 99 cuts;
* reward model, a closing of two tokens: a branch at every cut of the grid.

Branches are more tokens, so their cost is held against the ratio of tokens. The sides take turns, batch by batch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pair_training import Models, smollm2, training_pairs

from shallow_signals.evaluation.scores import score_pairs
from shallow_signals.models.logprobs import PairTokens, score_rows
from shallow_signals.models.records import ResponseLogprobs
from shallow_signals.models.tree import TOKEN_BUDGET

GRID = [5, 10, 15, 20, 25, 33, 40, 50, 60, 75, 90, 100]
BAR = 1.15
Rows = Sequence[dict[str, Any]]
Read = Callable[[Rows, Callable[[int], Any]], Any]


@dataclass
class Side:
    """One way to read pairs, and what it has taken so far."""

    read: Read
    seconds: float = 0.0
    tokens: int = 0
    now: Callable[[], float] = field(default=time.perf_counter)

    def take(self, rows: Rows) -> None:
        started = self.now()
        self.read(rows, self._count)
        self.seconds += self.now() - started

    def _count(self, tokens: int) -> None:
        self.tokens += tokens


def main() -> None:
    """Measure and print one Markdown table."""
    options = arguments()
    torch.set_num_threads(options.threads)
    tokenizer = smollm2()
    make = Models(options, tokenizer)
    pairs = training_pairs(options, tokenizer, options.pairs)
    closing = list(tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"])
    rows = [open_row(number, row, len(closing)) for number, row in enumerate(pairs)]
    causal, reward = make(True).eval(), make(False).eval()
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    print(f"{make.describe()}; float32, {options.threads} thread(s), {options.clock} clock, {len(rows)} pairs\n")
    print("| read | cuts | seconds once | with all cuts | ratio | tokens | bar |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    logps = partial(read_logprobs, causal)
    scores = partial(read_scores, reward)
    open_ended: list[int] = []
    compare("log-probabilities, left open", 100, logps(open_ended, []), logps(open_ended, [], cuts=100), rows, clock)
    compare(
        "log-probabilities, closing of one", 100, logps(open_ended, []), logps(closing[:1], [], cuts=100), rows, clock
    )
    compare(
        "log-probabilities, closing of two", len(GRID), logps(closing, []), logps(closing, GRID, cuts=100), rows, clock
    )
    compare("reward model, left open", 100, scores(open_ended, []), scores(open_ended, range(1, 101)), rows, clock)
    compare("reward model, closing of two", len(GRID), scores(closing, []), scores(closing, GRID), rows, clock)


def compare(name: str, cuts: int, once: Read, every: Read, rows: Rows, clock: Callable[[], float]) -> None:
    """Print one line: both sides on the same rows, in turn."""
    first, second = Side(once, now=clock), Side(every, now=clock)
    for side in (first, second):  # what is allocated or compiled once is not counted
        side.read(rows[:8], lambda _: None)
    for start in range(0, len(rows), 40):
        for side in (first, second):
            side.take(rows[start : start + 40])
    ratio, tokens = second.seconds / first.seconds, second.tokens / first.tokens
    print(
        f"| {name} | {cuts} | {first.seconds:.1f} | {second.seconds:.1f} | {ratio:.3f} | {tokens:.3f} | "
        f"{BAR * tokens:.3f} |",
        flush=True,
    )


def read_logprobs(model: Any, closing: Sequence[int], grid: Sequence[int], cuts: int = 0) -> Read:
    """Log-probabilities, and at `cuts` evenly spaced cuts their prefix sums with the closing where it was read."""

    def read(rows: Rows, progress: Callable[[int], Any]) -> None:
        pairs = [PairTokens(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in rows]
        found = score_rows(
            model, pairs, closing, cuts=grid, max_length=4096, token_budget=TOKEN_BUDGET["cpu"], progress=progress
        )
        for response in (side for pair in found for side in pair):
            sums_at(response, cuts)

    return read


def sums_at(response: ResponseLogprobs, cuts: int) -> np.ndarray:
    """log p of the first 1/cuts, 2/cuts, ... of a response."""
    sums = np.cumsum(response.tokens, dtype=np.float64)
    kept = [max(1, cut * len(sums) // cuts) for cut in range(1, cuts + 1)]
    return sums[np.array(kept, dtype=np.int64) - 1]


def read_scores(model: Any, closing: Sequence[int], cuts: Sequence[int]) -> Read:
    """Scores on whole responses and at `cuts`."""

    def read(rows: Rows, progress: Callable[[int], Any]) -> None:
        totals = set()
        score_pairs(
            model,
            rows,
            closing=closing,
            cuts=list(cuts),
            max_length=4096,
            token_budget=TOKEN_BUDGET["cpu"],
            pad_id=0,
            progress=lambda _, total: totals.add(total),
        )
        progress(totals.pop())

    return read


def open_row(number: int, row: dict[str, Any], closing: int) -> dict[str, Any]:
    """A row as scoring reads it: responses without the closing that training gives them."""
    responses = {f"{side}_ids": row[f"{side}_ids"][:-closing] for side in ("chosen", "rejected")}
    return {
        "pair_id": str(number),
        "cluster": str(number),
        "subset": None,
        "prompt_ids": row["prompt_ids"],
        **responses,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="pairs.parquet, or raw rows as .parquet or .jsonl.gz")
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--model", type=Path, help="a checkpoint; without it random weights")
    parser.add_argument("--layers", type=int, default=6, help="of the random model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a machine that others use")
    parser.set_defaults(keep=100)
    return parser.parse_args()


if __name__ == "__main__":
    main()
