"""Judges that compare a model's outputs with the reference's, through AlpacaEval's `PairwiseAnnotator`.

Here: judges that score each output by itself (a reward model, the demo's true reward). `judge_api` asks a language
model. All yield the annotations frame of `alpaca_files`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import alpaca_eval
import numpy as np
import pandas as pd
from alpaca_eval.annotators import PairwiseAnnotator

from shallow_signals.evaluation.alpaca_files import COLUMNS, Record, check_instructions
from shallow_signals.files import InputError

Score = Callable[[str, str], float]  # instruction and output to a reward
Annotate = Callable[[pd.DataFrame], pd.DataFrame]  # adds `preference` to rows of instruction, output_1, output_2

# The judge whose prompt, parameters and parser the language-model judges inherit.
CONFIG = Path(alpaca_eval.__file__).parent / "evaluators_configs" / "weighted_alpaca_eval_gpt4_turbo" / "configs.yaml"
SEED = 0  # the package's default; it decides which outputs are shown swapped


def compare(reference: Sequence[Record], outputs: Sequence[Record], name: str, annotator: Any) -> pd.DataFrame:
    """The annotations frame of one judge, in the reference's order; `preference` is NaN where it gave none.

    `annotator` is one of the package's single annotators, or anything called like it (with a list `processors`). Equal
    outputs are not shown to it: they are a tie, as in the package.
    """
    check_instructions(outputs, reference, "outputs")
    pairwise = _Pairwise({name: annotator})
    rows = pairwise.annotate_head2head(
        *([dict(record) for record in side] for side in (reference, outputs)), is_ordered=True, chunksize=None
    )
    frame = pd.DataFrame(rows)[COLUMNS].astype({"preference": float}).reset_index(drop=True)
    if list(frame["instruction"]) != [record["instruction"] for record in reference]:
        raise RuntimeError("the package returned the comparisons in another order")
    return frame.assign(annotator=name)


def judge_by_reward(
    reference: Sequence[Record], outputs: Sequence[Record], score: Score, name: str, soft: bool = False
) -> pd.DataFrame:
    """Annotations by a reward: 2 where the model's output scores higher, 1 where lower, 1.5 where equal.

    With `soft` the preference is 1 + sigmoid(score of the model's output - score of the reference's): the Bradley-Terry
    probability of a reward model. Each output is scored once. Raises `InputError` for a score that is no finite number.
    """
    known: dict[tuple[str, str], float] = {}

    def value(instruction: str, output: str) -> float:
        key = (instruction, output)
        if key not in known:
            known[key] = float(score(instruction, output))
            if not np.isfinite(known[key]):
                raise InputError(f"judge {name}: score {known[key]} for the output to {instruction[:50]!r}")
        return known[key]

    def annotate(rows: pd.DataFrame) -> pd.DataFrame:
        instructions = rows["instruction"]
        sides = [[value(*pair) for pair in zip(instructions, rows[c], strict=True)] for c in ("output_1", "output_2")]
        return rows.assign(preference=preferences(sides[0], sides[1], soft))

    return compare(reference, outputs, name, _Plain(annotate))


def preferences(reference: Sequence[float], model: Sequence[float], soft: bool = False) -> np.ndarray[Any, Any]:
    """Preferences [n] in 1..2 from the scores [n] of both sides."""
    difference = np.asarray(model, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    if not soft:
        return np.asarray(1.5 + 0.5 * np.sign(difference))
    return np.asarray(1.5 + 0.5 * np.tanh(difference / 2))  # 1 + sigmoid, without overflow


def known_scores(scored: Sequence[tuple[Sequence[Record], Sequence[float]]]) -> Score:
    """A `Score` that looks up what a reward model gave in batches: pairs of records and their scores, in order.

    So the reference's outputs are scored once for all models. An output it has no score for is an `InputError`.
    """
    table: Mapping[tuple[str, str], float] = {
        (record["instruction"], record["output"]): float(score)
        for records, scores in scored
        for record, score in zip(records, scores, strict=True)
    }

    def score(instruction: str, output: str) -> float:
        try:
            return table[instruction, output]
        except KeyError:
            raise InputError(f"scores: none for an output to {instruction[:50]!r}; score all outputs first") from None

    return score


class _Plain:
    """What `PairwiseAnnotator` needs of an annotator that shows no prompt."""

    processors: tuple[Any, ...] = ()

    def __init__(self, annotate: Annotate) -> None:
        self.annotate = annotate

    def __call__(self, rows: pd.DataFrame, **_: Any) -> pd.DataFrame:
        return self.annotate(rows)


class _Pairwise(PairwiseAnnotator):  # type: ignore[misc]
    """The package's pairwise annotation with annotators made here, without its own cache."""

    def __init__(self, annotators: dict[str, Any]) -> None:
        self._own = annotators
        super().__init__(annotators_config=CONFIG, seed=SEED, caching_path=None)

    def _initialize_annotators(self, **_: Any) -> dict[str, Any]:
        return self._own
