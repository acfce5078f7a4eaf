"""AlpacaEval's win rates, from annotations (`alpaca_files`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.statistics import DEFAULTS, UNIT, Estimate, cluster_bootstrap_mean
from shallow_signals.files import InputError

if TYPE_CHECKING:
    import pandas as pd


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
