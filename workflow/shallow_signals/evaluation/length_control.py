"""AlpacaEval's length-controlled win rate, by the package's own GLM fitted on local files.

The GLM is a logistic regression of the preference on tanh(length difference / its standard deviation), the
instruction's difficulty and an intercept for the model; the length-controlled (LC) win rate is its mean prediction at
a length difference of zero. Two "gamed" baselines (the reference model told to be verbose, or concise) regularise it:
they have the slope and the difficulty, but no intercept.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.alpacaeval import win_scores
from shallow_signals.evaluation.regulariser import Regulariser, read_csv
from shallow_signals.evaluation.statistics import DEFAULTS, Estimate
from shallow_signals.files import InputError

if TYPE_CHECKING:
    import pandas as pd

GLM = "length_controlled_v1"
GROUPS = 20  # of the jackknife
MIN_ROWS = 2 * GROUPS
ONE_SIDED = 0.05  # share of pairs below which one sign of the length difference counts as missing


@dataclass(frozen=True)
class GlmWeights:
    """The GLM's weights: of tanh(standardised length difference), of the difficulty, and the model's intercept."""

    length: float
    difficulty: float
    intercept: float


@dataclass(frozen=True)
class LengthOverlap:
    """Whether the data can tell length from quality: both signs of the length difference should be common."""

    longer: float  # share of pairs where the model's output is longer than the reference's, in characters
    shorter: float
    equal: float
    overlap: float  # 1 - the largest gap between the two distributions of length: 1 the same, 0 disjoint
    median_ratio: float  # the model's median length over the reference's

    @property
    def one_sided(self) -> bool:
        """True where nearly all differences have one sign, so that "equal length" is extrapolated."""
        return min(self.longer, self.shorter) < ONE_SIDED


@dataclass(frozen=True)
class GlmFit:
    """One fit of the package's GLM."""

    value: float  # LC win rate in percent
    weights: GlmWeights
    converged: bool
    notes: tuple[str, ...]  # warnings of the fit, each once


@dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate in percent, with what one must know to trust it."""

    name: str  # names the regulariser unless it is AlpacaEval's own
    estimate: Estimate
    weights: GlmWeights
    converged: bool
    extreme: bool  # the package's own alarm: very different from the raw win rate
    approximate: bool  # True with a stand-in regulariser: not AlpacaEval's number
    lengths: LengthOverlap
    notes: tuple[str, ...]  # warnings of the fit, or why there is none
    left_out: tuple[float, ...] = ()  # the weakly penalised values without each of the jackknife's groups


def read_weights(path: Path) -> dict[str, GlmWeights]:
    """Published GLM weights by model (AlpacaEval's weights/.../baseline_gpt4_1106_preview.csv)."""
    table = read_csv(path)
    if table.shape[1] != 4:
        raise InputError(f"{path}: expected a model and three weights a row, found {table.shape[1]} columns")
    return {str(row[0]): GlmWeights(*map(float, row[1:])) for row in table.itertuples(index=False)}


def lc_from_weights(weights: GlmWeights, difficulty: ArrayLike) -> float:
    """LC win rate in percent from a model's published weights: 100 mean sigmoid(intercept + weight x difficulty)."""
    from scipy.special import expit

    logits = weights.intercept + weights.difficulty * np.asarray(difficulty, dtype=np.float64)
    return 100 * float(np.mean(expit(logits)))


def length_overlap(annotations: pd.DataFrame) -> LengthOverlap:
    """Lengths in characters of the model's outputs (`output_2`) against the reference's (`output_1`)."""
    reference, model = (np.array([len(text) for text in annotations[c]]) for c in ("output_1", "output_2"))
    grid = np.union1d(reference, model)
    shares = [np.searchsorted(np.sort(side), grid, side="right") / side.size for side in (reference, model)]
    median = float(np.median(reference))
    return LengthOverlap(
        longer=float(np.mean(model > reference)),
        shorter=float(np.mean(model < reference)),
        equal=float(np.mean(model == reference)),
        overlap=1.0 - float(np.max(np.abs(shares[0] - shares[1]))),
        median_ratio=float(np.median(model)) / median if median else math.nan,
    )


def length_controlled(
    annotations: pd.DataFrame, regulariser: Regulariser, settings: Statistics = DEFAULTS
) -> LengthControlled:
    """The LC win rate by the package's GLM, with a delete-group jackknife interval over instructions.

    Rows stand in the order of the regulariser's instructions (difficulties are looked up by position); unjudged rows
    do not take part in the fit. The value is the package's, with a penalty chosen by cross-validation. The jackknife
    leaves out each of twenty random groups of instructions in turn and fits again with the package's weak fixed
    penalty. (The choice jumps from subset to subset, down to a penalty that takes the model's effect out: twenty times
    50.0 would be an interval of no width.) So the interval includes the fit's own uncertainty, which the package's
    standard error does not, but not that of the choice; the regulariser's rows are held fixed.

    Where no GLM can be fitted (fewer than 40 judged rows, or all length differences equal) the value is NaN and a note
    says so. Raises `InputError` when rows and regulariser do not match.
    """
    from alpaca_eval.metrics.glm_winrate import get_is_extreme_changes

    frame, judged = _standard(annotations, regulariser)
    reason = _unfit(frame, judged)
    left_out: list[float] = []
    if reason:
        fit, extreme = GlmFit(math.nan, GlmWeights(math.nan, math.nan, math.nan), False, (reason,)), False
        low, high, method = math.nan, math.nan, reason
    else:
        with _local_files(regulariser):
            fit = _fit(frame)
            groups = np.array_split(np.random.default_rng(settings.seed).permutation(len(frame)), GROUPS)
            left_out = [_fit(frame.drop(index=frame.index[group]), choose_penalty=False).value for group in groups]
        extreme = bool(get_is_extreme_changes(100 * float(win_scores(frame)[judged].mean()), fit.value))
        low, high = _jackknife_interval(fit.value, left_out, settings.confidence)
        low, high, method = max(low, 0.0), min(high, 100.0), f"jackknife over {GROUPS} groups of instructions"
    clusters = annotations["instruction"].iloc[judged].nunique()
    return LengthControlled(
        name=regulariser.number,
        estimate=Estimate(fit.value, low, high, judged.size, clusters, method),
        weights=fit.weights,
        converged=fit.converged,
        extreme=extreme,
        approximate=not regulariser.official,
        lengths=length_overlap(annotations),
        notes=fit.notes,
        left_out=tuple(left_out),
    )


def lc_difference(
    first: LengthControlled, second: LengthControlled, settings: Statistics = DEFAULTS
) -> Estimate | None:
    """The LC win rate of `first` minus that of `second`, of one set of instructions; None where one has no value.

    The jackknife leaves out the same groups of instructions on both sides, so the interval is a paired one.
    """
    if not (first.left_out and second.left_out):
        return None
    value = first.estimate.value - second.estimate.value
    differences = [a - b for a, b in zip(first.left_out, second.left_out, strict=True)]
    low, high = _jackknife_interval(value, differences, settings.confidence)
    rows = min(first.estimate, second.estimate, key=lambda side: side.n)
    return Estimate(value, low, high, rows.n, rows.clusters, first.estimate.method)


def fit_glm(annotations: pd.DataFrame, regulariser: Regulariser) -> GlmFit:
    """One fit of the package's GLM, without an interval; raises `InputError` where it can't be fitted."""
    frame, judged = _standard(annotations, regulariser)
    if reason := _unfit(frame, judged):
        raise InputError(f"annotations: {reason}")
    with _local_files(regulariser):
        return _fit(frame)


def _jackknife_interval(value: float, left_out: Sequence[float], confidence: float) -> tuple[float, float]:
    """t-interval with variance (G - 1) / G sum (theta_g - mean)^2 and G - 1 degrees of freedom."""
    from scipy.stats import t

    estimates = np.asarray(left_out)
    error = math.sqrt((GROUPS - 1) / GROUPS * float(np.sum((estimates - estimates.mean()) ** 2)))
    half = float(t.ppf((1 + confidence) / 2, GROUPS - 1)) * error
    return value - half, value + half


def _standard(annotations: pd.DataFrame, regulariser: Regulariser) -> tuple[pd.DataFrame, NDArray[np.intp]]:
    """The columns that the GLM reads, rows numbered from 0, and the numbers of the judged rows.

    Generators get fixed names: the package makes file names of them, and treats a model called like the reference as
    the reference.
    """
    if len(annotations) != regulariser.instructions:
        raise InputError(
            f"annotations: {len(annotations)} rows, but the regulariser knows {regulariser.instructions} instructions; "
            "the length-controlled win rate needs the whole set in its order"
        )
    judged = np.flatnonzero(~np.isnan(win_scores(annotations)))
    frame = annotations[["preference", "output_1", "output_2"]].reset_index(drop=True)
    return frame.assign(generator_1="reference", generator_2="model", annotator="judge"), judged


def _unfit(frame: pd.DataFrame, judged: NDArray[np.intp]) -> str | None:
    """Why the GLM can't be fitted, if so."""
    if judged.size < MIN_ROWS:
        return f"no LC win rate from fewer than {MIN_ROWS} judged instructions"
    differences = (frame["output_1"].str.len() - frame["output_2"].str.len()).to_numpy()
    if np.ptp(differences) == 0:
        return "no LC win rate where all length differences are equal"
    return None


def _fit(frame: pd.DataFrame, choose_penalty: bool = True) -> GlmFit:
    """Fit; inside `_local_files` only. With `choose_penalty` False at the package's default for a fit without folds."""
    import sklearn
    from alpaca_eval.metrics.glm_winrate import GLM_INFO, get_length_controlled_winrate
    from sklearn.exceptions import ConvergenceWarning

    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(record=True) as caught,
        sklearn.config_context(),  # the package switches metadata routing on for the whole process
    ):
        warnings.simplefilter("always")
        metrics: dict[str, Any] = get_length_controlled_winrate(
            frame.copy(),
            glm_name=GLM,
            glm_info=GLM_INFO[GLM] if choose_penalty else {**GLM_INFO[GLM], "kwargs": {"n_splits": 0}},
            save_weights_dir=folder,
            is_warn_extreme_changes=False,
        )
        weights = read_weights(Path(folder) / GLM / "baseline_reference.csv")["model"]
    value = float(metrics["length_controlled_winrate"])
    converged = not any(issubclass(item.category, ConvergenceWarning) for item in caught)
    # Of the rest only what concerns this fit: the libraries also announce future changes of their interfaces.
    notes = sorted({str(w.message) for w in caught if not issubclass(w.category, (FutureWarning, DeprecationWarning))})
    return GlmFit(value, weights, converged and math.isfinite(value), tuple(notes))


@contextmanager
def _local_files(regulariser: Regulariser) -> Iterator[None]:
    """Let the package find the regulariser's rows where it would download df_gamed.csv."""
    from alpaca_eval.metrics import glm_winrate

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "df_gamed.csv"
        regulariser.rows.to_csv(path, index=False)
        download = glm_winrate.hf_hub_download
        glm_winrate.hf_hub_download = lambda **_: str(path)
        try:
            yield
        finally:
            glm_winrate.hf_hub_download = download
