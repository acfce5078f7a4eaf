"""What scoring a reward model takes from what its lower layers, shared with others, made of the pairs before.

    OMP_NUM_THREADS=1 python benchmarks/trunk.py hh_rlhf_harmless_test.jsonl.gz --layers 30 --clock cpu

Both sides read the same pairs at every cut of the grid, closing by closing, under the same model in bfloat16: `whole`
through all of its layers, `from it` from the states that the lower half of them left. Making those states, once for all
models that share the layers, is timed beside. The sides take turns.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from one_pass import GRID, open_row
from pair_training import Models, smollm2, training_pairs

from shallow_signals.evaluation.layouts import Layout
from shallow_signals.evaluation.readings import read_states
from shallow_signals.evaluation.scores import cuts_below, lay_out, score_pairs
from shallow_signals.models.attention import with_grouped_attention
from shallow_signals.models.tree import TOKEN_BUDGET
from shallow_signals.models.trunk import Trunk

BUDGET, MAX_LENGTH = TOKEN_BUDGET["cpu"], 1024


def main() -> None:
    """Measure and print one line."""
    options = arguments()
    torch.set_num_threads(options.threads)
    tokenizer = smollm2()
    closing = list(tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"])
    pairs = training_pairs(options, tokenizer, options.pairs)
    rows = [open_row(number, row, len(closing)) for number, row in enumerate(pairs)]
    make = Models(options, tokenizer)
    model = with_grouped_attention(make(False).eval().to(torch.bfloat16))
    clock = time.process_time if options.clock == "cpu" else time.perf_counter

    def whole(part: list[dict[str, object]], trunk: Trunk | None = None) -> pa.Table:
        return score_pairs(
            model,
            part,
            closing=closing,
            cuts=GRID,
            max_length=MAX_LENGTH,
            token_budget=BUDGET,
            pad_id=0,
            trunk=trunk,
        )

    spent, apart = np.zeros(3), 0.0
    whole(rows[:8])  # what is allocated or compiled once is not counted
    for start in range(0, len(rows), options.turn):
        part = rows[start : start + options.turn]
        layout, _ = lay_out(part, list(cuts_below(GRID).values()), Layout(closing, MAX_LENGTH, None), {})
        at = [clock()]
        trunk = read_states(model, layout, options.layers // 2, BUDGET, 0, None)
        at.append(clock())
        ours = whole(part, trunk)
        at.append(clock())
        theirs = whole(part)
        at.append(clock())
        spent += np.diff(at)
        for side in ("chosen", "rejected"):
            apart = max(apart, float(np.abs(np.array(ours[side]) - np.array(theirs[side])).max()))
    made, started, read = spent
    print(f"{make.describe()}; bfloat16, {options.threads} thread(s), {options.clock} clock, {len(rows)} pairs\n")
    print("| shared layers | seconds to make the states | whole | from it | ratio | largest difference of a score |")
    print("|---:|---:|---:|---:|---:|---:|")
    print(
        f"| {options.layers // 2} of {options.layers} | {made:.1f} | {read:.1f} | {started:.1f} | "
        f"{started / read:.2f} | {apart:.1e} |"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="pairs.parquet, or raw rows as .parquet or .jsonl.gz")
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--turn", type=int, default=40, help="pairs that each side reads in a turn")
    parser.add_argument("--layers", type=int, default=30, help="of the random model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a machine that others use")
    parser.set_defaults(keep=100, model=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
