"""AlpacaEval: files of model outputs, and win rates from annotations.

An annotations frame has one row per instruction: `instruction`, `output_1` (the reference), `output_2` (the model),
`generator_1`, `generator_2`, `annotator`, `preference` (1: the reference wins, 2: the model wins, between: the judge's
probability, NaN: not judged). AlpacaEval's old files write a tie as 0; it counts as 1.5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.statistics import DEFAULTS, UNIT, Estimate, cluster_bootstrap_mean
from shallow_signals.files import InputError, write_json

if TYPE_CHECKING:
    import pandas as pd

Record = Mapping[str, Any]  # one row of a model_outputs.json

FIELDS = ("instruction", "output", "generator")
COLUMNS = ["instruction", "output_1", "output_2", "generator_1", "generator_2", "annotator", "preference"]


def write_outputs(path: Path, records: Sequence[Record], reference: Sequence[Record] | None = None) -> None:
    """Write outputs in AlpacaEval's model_outputs.json format: a list of {instruction, output, generator, dataset}.

    `dataset` and further keys are kept as they are. With `reference` the instructions must be its own, in its order.
    Raises `InputError` for anything else than what `read_outputs` would accept.
    """
    _check(records, str(path))
    if reference is not None:
        check_instructions(records, reference, str(path))
    write_json(path, [dict(record) for record in records])


def read_outputs(path: Path) -> list[dict[str, Any]]:
    """The records of a model_outputs.json; raises `InputError` naming the file, the row and the field."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({str(error).splitlines()[0]})") from error
    _check(records, str(path))
    return [dict(record) for record in records]


def check_instructions(outputs: Sequence[Record], reference: Sequence[Record], where: str) -> None:
    """Raise `InputError` unless `outputs` answer the reference's instructions, all of them, in the same order.

    Difficulties and pairs are looked up by position, so another order would silently compare different questions.
    """
    advice = "generate over the reference's instructions, in their order"
    if len(outputs) != len(reference):
        raise InputError(f"{where}: {len(outputs)} outputs for the reference's {len(reference)} instructions; {advice}")
    for row, (ours, theirs) in enumerate(zip(outputs, reference, strict=True)):
        if ours["instruction"] != theirs["instruction"]:
            found, wanted = (repr(record["instruction"][:50]) for record in (ours, theirs))
            raise InputError(f"{where}: row {row}: instruction {found} where the reference has {wanted}; {advice}")


@dataclass(frozen=True)
class WinRate:
    """How often the judge prefers the model, in percent as AlpacaEval prints it."""

    win_rate: Estimate  # mean(preference - 1); interval by instruction
    standard_error: float  # of that mean, rows taken as independent, as the leaderboard gives it
    discrete_win_rate: float  # preferences rounded to a win, a loss or a draw (half a win)
    wins: int
    losses: int
    draws: int
    unjudged: int  # rows without a preference; they count nowhere else

    @property
    def n(self) -> int:
        """Judged rows."""
        return self.wins + self.losses + self.draws


def win_scores(annotations: pd.DataFrame) -> NDArray[np.float64]:
    """preference - 1 per row, [n] in [0, 1], a tie .5, NaN where not judged.

    Raises `InputError` for a preference outside 1..2 that is neither 0 (an old file's tie) nor missing.
    """
    scores = np.asarray(annotations["preference"], dtype=np.float64) - 1.0
    scores[scores == -1.0] = 0.5
    wrong = ~np.isnan(scores) & ((scores < 0.0) | (scores > 1.0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(f"annotations: row {row}: preference {scores[row] + 1.0} is not in 1..2 (0 for a tie)")
    return scores


def win_rate(annotations: pd.DataFrame, settings: Statistics = DEFAULTS) -> WinRate:
    """AlpacaEval's win rates by the package's own function, with an interval over instructions.

    Raises `InputError` when no row is judged. For several seeds or paired differences feed `win_scores` of each run to
    `statistics.cluster_bootstrap_mean` and `paired_difference`.
    """
    from alpaca_eval.metrics import get_winrate

    scores = win_scores(annotations)
    judged = ~np.isnan(scores)
    if not judged.any():
        raise InputError("annotations: no row has a preference; judge the outputs first")
    official = get_winrate(annotations[judged])
    fraction = cluster_bootstrap_mean(scores[judged], annotations["instruction"][judged], settings, bounds=UNIT)
    return WinRate(
        win_rate=in_percent(fraction),
        standard_error=float(official["standard_error"]),
        discrete_win_rate=float(official["discrete_win_rate"]),
        wins=int(official["n_wins"]),
        losses=int(official["n_wins_base"]),
        draws=int(official["n_draws"]),
        unjudged=int((~judged).sum()),
    )


def in_percent(fraction: Estimate) -> Estimate:
    """The same estimate times 100."""
    return replace(fraction, value=100 * fraction.value, low=100 * fraction.low, high=100 * fraction.high)


def _check(records: Any, where: str) -> None:
    """Raise `InputError` unless `records` are a non-empty list of outputs by one generator."""
    if not isinstance(records, Sequence) or isinstance(records, str) or not records:
        raise InputError(f"{where}: expected a list of at least one output, as AlpacaEval's model_outputs.json holds")
    for row, record in enumerate(records):
        for field in FIELDS:
            if not isinstance(record, Mapping) or not isinstance(record.get(field), str):
                raise InputError(f"{where}: row {row}: '{field}' must be a string")
    generators = sorted({record["generator"] for record in records})
    if len(generators) > 1:
        raise InputError(f"{where}: outputs of {len(generators)} generators ({', '.join(generators[:3])}); keep one")
