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
from shallow_signals.evaluation.statistics import DEFAULTS, Estimate, Floats
from shallow_signals.files import InputError

if TYPE_CHECKING:
    import pandas as pd

GLM = "length_controlled_v1"
GROUPS = 20  # of the jackknife: twenty-one fits of a tenth of a second each
MIN_ROWS = 2 * GROUPS
ONE_SIDED = 0.05  # share of pairs below which one sign of the length difference counts as missing
GAMED_COLUMNS = ["preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model"]
# AlpacaEval 2.0's two gamed baselines as published: weights of length and difficulty, and the win rate.
GAMED = {
    "gpt4_1106_preview_verbose": (-1.5835274219761557, 0.8334888457867451, 0.6430360147101865),
    "gpt4_1106_preview_concise": (-1.6424856171097677, 0.6835779026468267, 0.2292019444047205),
}


@dataclass(frozen=True)
class GlmWeights:
    """The GLM's weights: of tanh(standardised length difference), of the difficulty, and the model's intercept."""

    length: float
    difficulty: float
    intercept: float


@dataclass(frozen=True)
class Regulariser:
    """The gamed baselines' rows (AlpacaEval's df_gamed.csv), which also carry the instructions' difficulties."""

    rows: pd.DataFrame
    official: bool

    @property
    def instructions(self) -> int:
        """Number of instructions that the rows know the difficulty of."""
        return int(self.rows["index"].nunique())


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


def official_regulariser(path: Path) -> Regulariser:
    """AlpacaEval's df_gamed.csv; raises `InputError` when it is not that file."""
    import pandas as pd

    rows = _read_csv(path)
    missing = [column for column in GAMED_COLUMNS if column not in rows]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; expected AlpacaEval's df_gamed.csv")
    if not isinstance(rows.index, pd.RangeIndex) or rows["not_gamed_baseline"].astype(bool).any():
        raise InputError(f"{path}: expected gamed baselines only; take df_gamed.csv of tatsu-lab/alpaca_eval")
    return Regulariser(rows[GAMED_COLUMNS], official=True)


def standin_regulariser(difficulty: ArrayLike, seed: int = 0) -> Regulariser:
    """Rows to use where df_gamed.csv is absent, rebuilt from what is published about the two gamed baselines.

    `difficulty` [n] are the instructions' difficulties in the annotations' order (zeros where none are known). Each
    baseline is the reference model itself, so its quality is taken as equal (no intercept): its preference is
    sigmoid(a x + b difficulty) with the published a and b, x = tanh(mu + z), z standard normal, mu such that the mean
    preference is the published win rate.
    """
    import pandas as pd
    from scipy.stats import norm

    values = np.asarray(difficulty, dtype=np.float64)
    quantiles = norm.ppf((np.arange(values.size) + 0.5) / values.size)
    generator = np.random.default_rng(seed)
    frames = []
    for model, (slope, weight, rate) in GAMED.items():
        lengths, preference = _gamed(slope, weight * values, rate, generator.permutation(quantiles))
        columns = [preference, np.arange(values.size), lengths, values, False, model]
        frames.append(pd.DataFrame(dict(zip(GAMED_COLUMNS, columns, strict=True))))
    return Regulariser(pd.concat(frames, ignore_index=True), official=False)


def _gamed(slope: float, offset: Floats, rate: float, spread: Floats) -> tuple[Floats, Floats]:
    """Standardised length differences around the mean that gives the win rate `rate`, and their preferences."""
    from scipy.optimize import brentq
    from scipy.special import expit

    def preference(mean: float) -> Floats:
        return np.asarray(expit(slope * np.tanh(mean + spread) + offset), dtype=np.float64)

    mean = float(brentq(lambda guess: float(preference(guess).mean()) - rate, -10.0, 10.0))
    return mean + spread, preference(mean)


def read_difficulties(path: Path, instructions: Sequence[str]) -> Floats:
    """Difficulties [n] of `instructions`.

    A file with an `instruction` column is joined by its text; AlpacaEval's instruction_difficulty.csv has none and
    holds the 805 instructions in their order. Raises `InputError` when an instruction has no difficulty.
    """
    table = _read_csv(path)
    names = [column for column in table if "difficulty" in str(column)]
    if len(names) != 1:
        raise InputError(f"{path}: expected one column of difficulties, found {names or 'none'}")
    values = table[names[0]].astype(float)
    if "instruction" not in table:
        if len(table) != len(instructions):
            raise InputError(f"{path}: {len(table)} difficulties for {len(instructions)} instructions, joined by order")
        return np.asarray(values, dtype=np.float64)
    known = dict(zip(table["instruction"], values, strict=True))
    absent = [instruction for instruction in instructions if instruction not in known]
    if absent:
        raise InputError(f"{path}: no difficulty for {len(absent)} instructions, first {absent[0][:50]!r}")
    return np.array([known[instruction] for instruction in instructions])


def read_weights(path: Path) -> dict[str, GlmWeights]:
    """Published GLM weights by model (AlpacaEval's weights/.../baseline_gpt4_1106_preview.csv)."""
    table = _read_csv(path)
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
    do not take part in the fit. The jackknife leaves out each of twenty random groups of instructions in turn and fits
    again, so the interval includes the fit's own uncertainty (the package's standard error does not); the
    regulariser's rows are held fixed. Where no GLM can be fitted (fewer than 40 judged rows, or all length differences
    equal) the value is NaN and a note says so. Raises `InputError` when rows and regulariser do not match.
    """
    from alpaca_eval.metrics.glm_winrate import get_is_extreme_changes

    frame, judged = _standard(annotations, regulariser)
    name = "LC win rate" if regulariser.official else "LC win rate (stand-in regulariser)"
    reason = _unfit(frame, judged)
    if reason:
        fit, extreme = GlmFit(math.nan, GlmWeights(math.nan, math.nan, math.nan), False, (reason,)), False
        low, high, method = math.nan, math.nan, reason
    else:
        with _local_files(regulariser):
            fit = _fit(frame)
            groups = np.array_split(np.random.default_rng(settings.seed).permutation(len(frame)), GROUPS)
            left_out = [_fit(frame.drop(index=frame.index[group])).value for group in groups]
        extreme = bool(get_is_extreme_changes(100 * float(win_scores(frame)[judged].mean()), fit.value))
        low, high = _jackknife_interval(fit.value, left_out, settings.confidence)
        low, high, method = max(low, 0.0), min(high, 100.0), f"jackknife over {GROUPS} groups of instructions"
    clusters = annotations["instruction"].iloc[judged].nunique()
    return LengthControlled(
        name=name,
        estimate=Estimate(fit.value, low, high, judged.size, clusters, method),
        weights=fit.weights,
        converged=fit.converged,
        extreme=extreme,
        approximate=not regulariser.official,
        lengths=length_overlap(annotations),
        notes=fit.notes,
    )


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


def _fit(frame: pd.DataFrame) -> GlmFit:
    """Fit; inside `_local_files` only."""
    import sklearn
    from alpaca_eval.metrics.glm_winrate import get_length_controlled_winrate
    from sklearn.exceptions import ConvergenceWarning

    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(record=True) as caught,
        sklearn.config_context(),  # the package switches metadata routing on for the whole process
    ):
        warnings.simplefilter("always")
        metrics: dict[str, Any] = get_length_controlled_winrate(
            frame.copy(), glm_name=GLM, save_weights_dir=folder, is_warn_extreme_changes=False
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


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        # An instruction may be the text "NA" or "None": nothing is read as missing.
        return pd.read_csv(path, keep_default_na=False)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable CSV file ({str(error).splitlines()[0]})") from error
